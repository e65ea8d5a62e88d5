package server

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
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

// TestBodies: a proved address gets a slot, however many unknown addresses send bodies.
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
		t.Errorf("unknown addresses have %d slots, want %d", in, maxUnknown)
	}
	var leave []func()
	for range 2 * maxBodies {
		if l, ok := d.enter("client"); ok {
			leave = append(leave, l)
		}
	}
	if len(leave) != maxBodies-maxUnknown {
		t.Errorf("a client's address has %d slots, want %d", len(leave), maxBodies-maxUnknown)
	}
	for _, l := range leave {
		l()
	}
	if d.all != maxUnknown || d.open["client"] != 0 {
		t.Errorf("%d slots are taken, %d of them by the client", d.all, d.open["client"])
	}
	now = now.Add(provedFor)
	if _, ok := d.enter("client"); ok {
		t.Error("an address is proved for too long")
	}
}

// take takes slots for an address until there is none, and returns how many.
func (d *bodies) take(address string) (leave []func()) {
	for {
		l, ok := d.enter(address)
		if !ok {
			return leave
		}
		leave = append(leave, l)
	}
}

// TestBodiesOfAnAddress: an address has fewer slots than there are. If it gives them back, nothing of it is left.
func TestBodiesOfAnAddress(t *testing.T) {
	now := time.Unix(1, 0)
	d := newBodies(slog.New(slog.DiscardHandler), func() time.Time { return now })
	d.prove("client")
	for range 3 {
		for address, want := range map[string]int{"unknown": perAddress, "client": perProved} {
			leave := d.take(address)
			if len(leave) != want {
				t.Errorf("%s has %d slots, want %d", address, len(leave), want)
			}
			for _, l := range leave {
				l()
			}
			if d.all != 0 || d.unknown != 0 || len(d.open) != 0 {
				t.Errorf("%s leaves %d slots, %d of unknown addresses, %v", address, d.all, d.unknown, d.open)
			}
		}
	}
	d.take("client")
	d.take("unknown")
	if d.all != maxBodies {
		t.Errorf("%d slots are taken, want %d", d.all, maxBodies)
	}
}

// TestRefusedBodiesLog: refusals are logged every ten seconds, with their number.
func TestRefusedBodiesLog(t *testing.T) {
	now := time.Unix(1e9, 0)
	var lines bytes.Buffer
	d := newBodies(slog.New(slog.NewTextHandler(&lines, nil)), func() time.Time { return now })
	d.take("a") // one refusal
	d.enter("a")
	now = now.Add(refusalsEvery - 1)
	d.enter("a")
	want := func(refused int) {
		t.Helper()
		if got := lines.String(); strings.Count(got, "too many bodies") != 1 ||
			!strings.Contains(got, fmt.Sprintf(`"refused so far"=%d`, refused)) {
			t.Errorf("the log has %s, want %d refusals", got, refused)
		}
		lines.Reset()
	}
	want(1)
	now = now.Add(1)
	d.enter("a")
	want(4)
}

// TestProvedTable: a full table of proved addresses keeps the addresses that are still proved, and renews them. It
// takes another address after one has expired.
func TestProvedTable(t *testing.T) {
	now := time.Unix(1, 0)
	d := newBodies(slog.New(slog.DiscardHandler), func() time.Time { return now })
	for i := range maxProved {
		d.prove(fmt.Sprint(i))
	}
	now = now.Add(provedFor - 1)
	d.prove("late")
	if _, there := d.proved["late"]; there || len(d.proved) != maxProved {
		t.Errorf("the table has %d addresses, and the one that came too late: %t", len(d.proved), there)
	}
	d.prove("7")
	now = now.Add(1)
	d.prove("late")
	if len(d.proved) != 2 || d.proved["7"].IsZero() || !d.proved["late"].Equal(now) {
		t.Errorf("after an hour the table has %d addresses, 7 at %v", len(d.proved), d.proved["7"])
	}
}
