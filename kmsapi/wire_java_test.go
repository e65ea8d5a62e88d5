package kmsapi_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// javaClient are the recordings of Hadoop's own clients: all that one of them said
// and heard while it did one thing.
const javaClient = "testdata/wire/java-client"

// turn is where one of the two begins to speak, on a connection.
var turn = regexp.MustCompile(`^(>>>|<<<) \[conn (\d+)\]$`)

// readJavaClient reads a recording of a client as single exchanges, by when their
// requests began. Those of which the recording keeps a part only are left out, or
// have no body to compare where that is the answer's.
func readJavaClient(t *testing.T, server, name string) []recording {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(javaClient, name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	type exchange struct{ asked, answered strings.Builder }
	var all []*exchange
	open := map[string]*exchange{} // by connection
	var to *strings.Builder
	for line := range strings.Lines(string(data)) {
		m := turn.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			if to == nil {
				t.Fatalf("%s begins with %q", name, line)
			}
			to.WriteString(line)
			continue
		}
		e := open[m[2]]
		if m[1] == ">>>" && (e == nil || e.answered.Len() > 0) {
			e = new(exchange)
			open[m[2]] = e
			all = append(all, e)
		}
		if e == nil {
			t.Fatalf("%s: connection %s is answered before anything is asked", name, m[2])
		}
		if to = &e.asked; m[1] == "<<<" {
			to = &e.answered
		}
	}
	const cut = "... (cut)\n"
	var list []recording
	for i, e := range all {
		asked, answered := e.asked.String(), e.answered.String()
		if strings.Contains(asked, cut) {
			continue
		}
		each := name + "-" + strconv.Itoa(i+1)
		if strings.Contains(asked, "eek_op=generate") {
			each += "-generate"
		}
		rec := parseRecording(t, server, each, []byte(asked+"\n"+answered+"\n\n"))
		rec.cut = strings.Contains(answered, cut)
		list = append(list, rec)
	}
	return list
}

// replayJavaClient replays a recording of a client. names are told what was
// replayed.
func (s *server) replayJavaClient(t *testing.T, kind, name string, everywhere, names map[string]bool) {
	t.Helper()
	list := readJavaClient(t, kind, name)
	if len(list) == 0 {
		t.Fatal("it holds no exchange")
	}
	for _, rec := range list {
		names[rec.name] = true
		t.Run(rec.name, func(t *testing.T) { s.replay(t, rec, everywhere) })
	}
}

// javaTickets adds the tokens with which the recorded clients signed in, and whom
// the recorded server took them for.
func javaTickets(t *testing.T, known tickets) {
	t.Helper()
	principal := regexp.MustCompile(`&p=([^&]+)&`)
	files, err := filepath.Glob(filepath.Join(javaClient, "kerberos-*.txt"))
	if err != nil || len(files) < 8 {
		t.Fatalf("%d recordings of clients with Kerberos, %v", len(files), err)
	}
	for _, file := range files {
		for _, rec := range readJavaClient(t, "krb", strings.TrimSuffix(filepath.Base(file), ".txt")) {
			sent := negotiateHeader.FindSubmatch(rec.request)
			if sent == nil {
				continue
			}
			reply := negotiateHeader.FindStringSubmatch("WWW-Authenticate: " + rec.answer.header("WWW-Authenticate"))
			who := principal.FindStringSubmatch(rec.answer.header("Set-Cookie"))
			if reply == nil || who == nil {
				t.Fatalf("%s: nobody is signed in", rec.name)
			}
			token, err := base64.StdEncoding.DecodeString(string(sent[2]))
			if err != nil {
				t.Fatal(err)
			}
			one := ticket{client: who[1]}
			if one.reply, err = base64.StdEncoding.DecodeString(reply[2]); err != nil {
				t.Fatal(err)
			}
			known[string(token)] = one
		}
	}
}

// withService puts the service that a client wrote into a recorded token into
// ours: a token that a server issues ends with an empty one.
func (s *server) withService(recorded []byte) []byte {
	r, err := base64.RawURLEncoding.DecodeString(string(recorded))
	if err != nil {
		return nil
	}
	for genuine, ours := range s.tokens {
		g, gerr := base64.RawURLEncoding.DecodeString(genuine)
		o, oerr := base64.RawURLEncoding.DecodeString(ours)
		if gerr != nil || oerr != nil || g[len(g)-1] != 0 || o[len(o)-1] != 0 {
			continue
		}
		if service, ok := bytes.CutPrefix(r, g[:len(g)-1]); ok {
			return []byte(base64.RawURLEncoding.EncodeToString(append(o[:len(o)-1:len(o)-1], service...)))
		}
	}
	return nil
}

// allJavaClients demands that every recording of a client was replayed.
func allJavaClients(t *testing.T, seen map[string]bool) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(javaClient, "*.txt"))
	if err != nil || len(files) < 24 {
		t.Fatalf("%d recordings of clients, %v", len(files), err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".txt")
		if !slices.ContainsFunc(slices.Collect(maps.Keys(seen)), func(s string) bool {
			return strings.HasPrefix(s, name+"-")
		}) {
			t.Error(fmt.Sprint(f, " is not in order.txt"))
		}
	}
}
