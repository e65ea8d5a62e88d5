package server

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"claviger/trustee"
)

// TestHalfSentBodies: bodies of which nothing more comes, from an address of no client,
// keep no other address from being served.
func TestHalfSentBodies(t *testing.T) {
	s := New(Config{})
	web := httptest.NewServer(s)
	defer web.Close()
	addr := web.Listener.Addr().String()
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	for range arriving {
		c, err := from.DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := fmt.Fprintf(c, "POST %sget HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n{", trustee.APIPath); err != nil {
			t.Fatal(err)
		}
	}
	open := func() int {
		s.doors.mu.Lock()
		defer s.doors.mu.Unlock()
		return s.doors.all + s.doors.refused
	}
	for deadline := time.Now().Add(30 * time.Second); open() < arriving; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d bodies have begun", open())
		}
	}
	// Too long, so that it is refused as soon as it is read.
	resp, err := http.Post(web.URL+trustee.APIPath+"get", "application/json", bytes.NewReader(make([]byte, trustee.MaxBody+1))) //nolint:noctx // a server of this test
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("another address is answered %d", resp.StatusCode)
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestDoors: however many strangers come, an address from which a client has proved
// itself gets in.
func TestDoors(t *testing.T) {
	now := time.Unix(1, 0)
	d := New(Config{Now: func() time.Time { return now }}).doors
	d.prove("client")
	in := 0
	for i := range 1000 {
		if _, ok := d.enter(fmt.Sprint("stranger", i%50)); ok {
			in++
		}
	}
	if in != strangers {
		t.Errorf("%d strangers are in, want %d", in, strangers)
	}
	var leave []func()
	for range 2 * arriving {
		if l, ok := d.enter("client"); ok {
			leave = append(leave, l)
		}
	}
	if len(leave) != arriving-strangers {
		t.Errorf("a client's address has %d places, want %d", len(leave), arriving-strangers)
	}
	for _, l := range leave {
		l()
	}
	if d.all != strangers || d.open["client"] != 0 {
		t.Errorf("%d places are taken, %d of them by the client", d.all, d.open["client"])
	}
	now = now.Add(provedFor)
	if _, ok := d.enter("client"); ok {
		t.Error("a client that has not come for long is in")
	}
}
