package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// from dials from an address of this host.
func from(t *testing.T, source, addr string) net.Conn {
	t.Helper()
	d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	conn, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// page asks for a page over the connection; "" where it was closed.
func page(t *testing.T, conn net.Conn, path string) string {
	t.Helper()
	_, _ = io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: kms\r\n\r\n") // the server may have closed it
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return ""
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestConnectionFlags(t *testing.T) {
	for _, f := range []connectionFlags{{total: 0, perAddress: -1}, {total: 10, perAddress: 11},
		{total: 10, perAddress: -2}, {total: 10, perAddress: 1, unlimited: "nat"}} {
		if _, err := f.limits(); err == nil || !strings.Contains(err.Error(), "--") {
			t.Errorf("%+v: %v", f, err)
		}
	}
	f := connectionFlags{total: 4, perAddress: -1}
	if l, err := f.limits(); err != nil || l.PerAddress != 2 {
		t.Errorf("half of all: %+v, %v", l, err)
	}
}
