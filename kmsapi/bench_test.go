package kmsapi_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"claviger/authn"
	"claviger/provider/memory"
)

// BenchmarkDecrypt measures decrypts over one connection, with keys in memory. Its allocations are those of the server:
// the client makes none.
func BenchmarkDecrypt(b *testing.B) {
	tokens, err := authn.NewDelegations(authn.DelegationConfig{KeyUpdate: time.Hour, MaxLife: time.Hour,
		Renewal: time.Hour, Scan: time.Hour, Remember: time.Hour})
	if err != nil {
		b.Fatal(err)
	}
	addr := start(b, stack{Primary: memory.New(memory.Config{}), Trail: &trail{off: true},
		Auth: authn.Config{Delegations: tokens}})
	call := func(method, target, body string) (string, http.Header) {
		req, err := http.NewRequestWithContext(b.Context(), method, "http://"+addr+"/kms/v1/"+target,
			strings.NewReader(body))
		if err != nil {
			b.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode >= http.StatusBadRequest {
			b.Fatal(res.Status, string(text), err)
		}
		return string(text), res.Header
	}
	_, header := call(http.MethodPost, "keys?user.name=alice", `{"name":"k","length":128}`)
	cookie, _, _ := strings.Cut(header.Get("Set-Cookie"), ";")
	var edeks []struct {
		VersionName, IV     string
		EncryptedKeyVersion struct{ Material string }
	}
	text, _ := call(http.MethodGet, "key/k/_eek?eek_op=generate&num_keys=1&user.name=alice", "")
	if err := json.Unmarshal([]byte(text), &edeks); err != nil {
		b.Fatal(err)
	}
	var issued struct{ Token struct{ URLString string } }
	text, _ = call(http.MethodGet, "?op=GETDELEGATIONTOKEN&renewer=yarn&user.name=alice", "")
	if err := json.Unmarshal([]byte(text), &issued); err != nil {
		b.Fatal(err)
	}
	body := fmt.Sprintf(`{"name":"k","iv":%q,"material":%q}`, edeks[0].IV, edeks[0].EncryptedKeyVersion.Material)
	for name, credential := range map[string]struct{ query, header string }{
		"cookie": {"", "Cookie: " + cookie + "\r\n"}, "token": {"&delegation=" + issued.Token.URLString, ""},
	} {
		b.Run(name, func(b *testing.B) {
			exchanges(b, addr, fmt.Sprintf("POST /kms/v1/keyversion/%s/_eek?eek_op=decrypt%s HTTP/1.1\r\n"+
				"Host: kms:9600\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s",
				url.PathEscape(edeks[0].VersionName), credential.query, credential.header, len(body), body))
		})
	}
}

// exchanges sends one request again and again, and reads the answers.
func exchanges(b *testing.B, addr, request string) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	out, in := []byte(request), make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := conn.Write(out); err != nil {
			b.Fatal(err)
		}
		n, err := conn.Read(in) // net/http sends a short answer as a whole
		if err != nil || !bytes.HasPrefix(in[:n], []byte("HTTP/1.1 200")) {
			b.Fatal(string(in[:n]), err)
		}
	}
}
