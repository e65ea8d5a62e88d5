package zktest_test

import (
	"io"
	"net"
	"testing"
	"time"

	"claviger/internal/zktest"
)

// ruok sends the server the command ruok, and returns the answer.
func ruok(t *testing.T, addr string) string {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("ruok")); err != nil {
		return err.Error()
	}
	b, err := io.ReadAll(c)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// TestServer: a server that was killed starts again at the same address.
func TestServer(t *testing.T) {
	s := zktest.Start(t, zktest.Options{})
	if got := ruok(t, s.Addr); got != "imok" {
		t.Fatalf("ruok: %q", got)
	}
	s.Kill()
	if got := ruok(t, s.Addr); got == "imok" {
		t.Fatal("a killed server answers")
	}
	s.Start()
	if got := ruok(t, s.Addr); got != "imok" {
		t.Fatalf("ruok after a restart: %q", got)
	}
}
