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

// javaClient is the folder with recordings of Hadoop's own clients. Each has all requests and
// answers of one command.
const javaClient = "testdata/wire/java-client"

// turn matches the line before a request (>>>) or an answer (<<<) on a connection.
var turn = regexp.MustCompile(`^(>>>|<<<) \[conn (\d+)\]$`)

// readJavaClient reads a client's recording as single exchanges, in the order of the requests. It
// leaves out an exchange whose request was cut. If the answer was cut, its body is not compared.
func readJavaClient(t *testing.T, server, name string) []recording {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(javaClient, name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	type exchange struct{ request, answer strings.Builder }
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
		if m[1] == ">>>" && (e == nil || e.answer.Len() > 0) {
			e = new(exchange)
			open[m[2]] = e
			all = append(all, e)
		}
		if e == nil {
			t.Fatalf("%s: connection %s has an answer before a request", name, m[2])
		}
		if to = &e.request; m[1] == "<<<" {
			to = &e.answer
		}
	}
	const cut = "... (cut)\n"
	var list []recording
	for i, e := range all {
		request, answer := e.request.String(), e.answer.String()
		if strings.Contains(request, cut) {
			continue
		}
		each := name + "-" + strconv.Itoa(i+1)
		if strings.Contains(request, "eek_op=generate") {
			each += "-generate"
		}
		rec := parseRecording(t, server, each, []byte(request+"\n"+answer+"\n\n"))
		rec.cut = strings.Contains(answer, cut)
		list = append(list, rec)
	}
	return list
}

// replayJavaClient replays a client's recording, and adds the replayed exchanges to names.
func (s *server) replayJavaClient(t *testing.T, kind, name string, everywhere, names map[string]bool) {
	t.Helper()
	list := readJavaClient(t, kind, name)
	if len(list) == 0 {
		t.Fatal("the recording has no exchange")
	}
	for _, rec := range list {
		names[rec.name] = true
		t.Run(rec.name, func(t *testing.T) { s.replay(t, rec, everywhere) })
	}
}

// javaTickets adds the tokens with which the recorded clients authenticated, and the principal of
// each on the recorded server.
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
				t.Fatalf("%s: the client did not authenticate", rec.name)
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

// withService adds to our token the service that a client wrote into the recorded one. A server
// issues tokens with an empty service at their end.
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

// allJavaClients checks that every recording of a client was replayed.
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
