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

// TestHalfSentBodies: unfinished bodies from an unknown address do not stop the requests of another address.
func TestHalfSentBodies(t *testing.T) {
	s := New(Config{})
	web := httptest.NewServer(s)
	defer web.Close()
	addr := web.Listener.Addr().String()
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	for range maxBodies {
		c, err := from.DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := fmt.Fprintf(c, "POST %sget HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n{",
			trustee.APIPath); err != nil {
			t.Fatal(err)
		}
	}
	open := func() int {
		s.bodies.mu.Lock()
		defer s.bodies.mu.Unlock()
		return s.bodies.all + s.bodies.refused
	}
	for deadline := time.Now().Add(30 * time.Second); open() < maxBodies; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d bodies have begun", open())
		}
	}
	// The body is too long, so it is refused as soon as it is read.
	body := bytes.NewReader(make([]byte, trustee.MaxBody+1))
	resp, err := http.Post(web.URL+trustee.APIPath+"get", "application/json", body) //nolint:noctx // own server
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("another address gets status %d", resp.StatusCode)
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestBodies: a proved address gets a place, however many unknown addresses send bodies.
func TestBodies(t *testing.T) {
	now := time.Unix(1, 0)
	d := New(Config{Now: func() time.Time { return now }}).bodies
	d.prove("client")
	in := 0
	for i := range 1000 {
		if _, ok := d.enter(fmt.Sprint("unknown", i%50)); ok {
			in++
		}
	}
	if in != maxUnknown {
		t.Errorf("unknown addresses have %d places, want %d", in, maxUnknown)
	}
	var leave []func()
	for range 2 * maxBodies {
		if l, ok := d.enter("client"); ok {
			leave = append(leave, l)
		}
	}
	if len(leave) != maxBodies-maxUnknown {
		t.Errorf("a client's address has %d places, want %d", len(leave), maxBodies-maxUnknown)
	}
	for _, l := range leave {
		l()
	}
	if d.all != maxUnknown || d.open["client"] != 0 {
		t.Errorf("%d places are taken, %d of them by the client", d.all, d.open["client"])
	}
	now = now.Add(provedFor)
	if _, ok := d.enter("client"); ok {
		t.Error("an address is proved for too long")
	}
}
