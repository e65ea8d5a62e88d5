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

// TestBodies: however many strangers come, an address from which a client has proved
// itself gets in.
func TestBodies(t *testing.T) {
	now := time.Unix(1, 0)
	d := New(Config{Now: func() time.Time { return now }}).bodies
	d.prove("client")
	in := 0
	for i := range 1000 {
		if _, ok := d.enter(fmt.Sprint("stranger", i%50)); ok {
			in++
		}
	}
	if in != maxUnknown {
		t.Errorf("%d maxUnknown are in, want %d", in, maxUnknown)
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
		t.Error("a client that has not come for long is in")
	}
}
