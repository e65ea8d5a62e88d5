package kmsapi_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/kmsapi"
	"claviger/provider"
	"claviger/provider/memory"
)

// inflated returns a name whose JSON is six times as long.
func inflated(i int) string { return fmt.Sprintf("%04d", i) + strings.Repeat("\x01", 4092) }

// longLists serves keys with the longest names, and key f with the longest metadata.
func longLists(t *testing.T, keys int, limiters *kmsapi.Limiters) (addr string) {
	t.Helper()
	p := memory.New(memory.Config{SequentialIDs: true})
	make := func(spec provider.Spec) {
		spec.Cipher, spec.BitLength = claviger.DefaultCipher, 128
		if _, err := p.Create(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
	}
	for i := range keys {
		make(provider.Spec{Name: inflated(i)})
	}
	attributes := map[string]string{}
	for i := range 7 {
		attributes[fmt.Sprint("a", i)] = strings.Repeat("\x01", 4080)
	}
	make(provider.Spec{Name: "f", Attributes: attributes})
	return withKey(t, stack{
		Primary: p, Limiters: limiters,
		Limits: kmsapi.Limits{MaxKeys: 5000, MaxBatch: 100_000, MaxBody: 8 << 20, MaxMemory: 32 << 20,
			// The tests close their connections. On a slow machine the server must not close them first.
			Slow: kmsapi.Slow{Grace: time.Minute, Rate: 64 << 20}},
		Admission: kmsapi.Admission{Decrypts: 64, Generates: 64, Batches: 400, Management: 4, Reads: 512,
			Wait: 500 * time.Millisecond},
	})
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestUnreadLists: a user without any right requests long lists on many connections, and reads
// no answer. The requests take no more memory than one user's limit, the figures show that
// memory, and another user is served.
func TestUnreadLists(t *testing.T) {
	const most = 80 << 20 // the answers together would be more
	for what, c := range map[string]struct {
		target string
		conns  int
	}{
		"names":          {"/kms/v1/keys/names?x=1", 60},
		"one key, again": {"/kms/v1/keys/metadata?" + strings.Repeat("key=f&", 60), 20},
		"EDEKs of a long name": {"/kms/v1/key/" + strings.ReplaceAll(inflated(0), "\x01", "%01") +
			"/_eek?eek_op=generate&num_keys=300", 20},
	} {
		t.Run(what, func(t *testing.T) {
			limiters := &kmsapi.Limiters{}
			addr := longLists(t, 200, limiters)
			before := heap()
			var conns []*net.TCPConn
			for range c.conns {
				conns = append(conns, sendPart(t, addr,
					"GET "+c.target+"&user.name=nobody9 HTTP/1.1\r\nHost: kms\r\n\r\n"))
			}
			var used, took int64
			// After the first answer the memory is measured for two seconds.
			began, limit := time.Now(), 30*time.Second
			for ; time.Since(began) < limit; time.Sleep(50 * time.Millisecond) {
				f := limiters.Figures()["large"]
				used = max(used, f.Used)
				took = max(took, heap()-before)
				if f.BusiestCaller > f.Size/2 {
					t.Fatalf("one user has %d of %d bytes", f.BusiestCaller, f.Size)
				}
				if used > 0 && limit > 2*time.Second {
					began, limit = time.Now(), 2*time.Second
				}
				if used > 0 && f.Own > 0 { // the server has started all of them
					break
				}
			}
			if used == 0 {
				t.Error("the answers count for no memory")
			}
			if took > most {
				t.Errorf("%d MB of heap", took>>20)
			}
			if a := send(t, addr, "GET", "/kms/v1/keys/metadata?key=k", ""); a.status != 200 {
				t.Errorf("another user: %d %s", a.status, a.body)
			}
			for _, conn := range conns {
				_ = conn.Close()
			}
			for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				f := limiters.Figures()
				if f["large"].Used == 0 && f["generate"].Used == 0 && f["metadata"].Used == 0 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("memory is not released: %+v", f)
				}
			}
		})
	}
}

// TestLongLists: an answer that is sent in parts is complete, and as long as its Content-Length says. A key
// that the request names several times is in the answer several times.
func TestLongLists(t *testing.T) {
	limiters := &kmsapi.Limiters{}
	addr := longLists(t, 30, limiters)
	var names []string
	if a := send(t, addr, "GET", "/kms/v1/keys/names", ""); json.Unmarshal(a.body, &names) != nil || len(names) != 32 {
		t.Fatalf("%d bytes of names, %d names", len(a.body), len(names))
	}
	seen := map[string]bool{}
	for _, name := range names {
		seen[name] = true
	}
	for i := range 30 {
		if !seen[inflated(i)] {
			t.Errorf("name %d is missing", i)
		}
	}
	type metadata struct {
		Name       string
		Attributes map[string]string
	}
	one := func(target string, into any) {
		t.Helper()
		if a := send(t, addr, "GET", target, ""); a.status != 200 || json.Unmarshal(a.body, into) != nil {
			t.Fatalf("%s: %d, %d bytes", target, a.status, len(a.body))
		}
	}
	var f metadata
	one("/kms/v1/key/f/_metadata", &f)
	var many []metadata
	one("/kms/v1/keys/metadata?key=k&"+strings.Repeat("key=f&", 40)+"key=k&key=gone&key=f", &many)
	if len(many) != 44 || many[0].Name != "k" || many[41].Name != "k" || many[42].Name != "" ||
		!reflect.DeepEqual(many[43], f) {
		t.Fatalf("%d entries", len(many))
	}
	for i := 1; i <= 40; i++ {
		if !reflect.DeepEqual(many[i], f) || len(f.Attributes) != 7 {
			t.Fatalf("entry %d differs", i)
		}
	}
	for _, n := range []int{1, 100, 4000} {
		var edeks []struct{ VersionName, IV string }
		one(fmt.Sprintf("/kms/v1/key/k/_eek?eek_op=generate&num_keys=%d", n), &edeks)
		ivs := map[string]bool{}
		for _, e := range edeks {
			ivs[e.IV] = e.VersionName == "k@0"
		}
		if len(ivs) != n {
			t.Errorf("%d different EDEKs for %d", len(ivs), n)
		}
	}
	if a := send(t, addr, "HEAD", "/kms/v1/keys/names", ""); a.status != 200 || len(a.body) != 0 {
		t.Errorf("HEAD: %d, %d bytes", a.status, len(a.body))
	}
	if f := limiters.Figures()["large"]; f.Used != 0 {
		t.Errorf("%d bytes were not released", f.Used)
	}
}

// TestBatchMemory: until its answer is read, a batch counts with the memory that it uses: its
// EDEKs, and the fresh ones.
func TestBatchMemory(t *testing.T) {
	limiters := &kmsapi.Limiters{}
	addr := longLists(t, 0, limiters)
	const edeks = 60_000 // the answer is longer than the sockets' buffers
	one := `{"versionName":"k@0","iv":"AAAAAAAAAAAAAAAAAAAAAA","encryptedKeyVersion":{"versionName":"EEK",` +
		`"material":"AAAAAAAAAAAAAAAAAAAAAA"}},`
	body := "[" + strings.TrimSuffix(strings.Repeat(one, edeks), ",") + "]"
	roll := send(t, addr, http.MethodPost, "/kms/v1/key/k", "{}")
	if roll.status != 200 {
		t.Fatalf("%d %s", roll.status, roll.body)
	}
	before := heap()
	conn := sendPart(t, addr, fmt.Sprintf("POST /kms/v1/key/k/_reencryptbatch?user.name=mallory HTTP/1.1\r\n"+
		"Host: kms\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	// The answer begins when all EDEKs are made. The body and the slots are released then.
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatalf("no answer begins: %v", err)
	}
	for deadline := time.Now().Add(time.Minute); limiters.Figures()["re-encryption"].Used > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%+v", limiters.Figures())
		}
		time.Sleep(20 * time.Millisecond)
	}
	used := limiters.Figures()["large"].Used
	took := heap() - before
	runtime.KeepAlive(body)
	if used < took*3/4 || used < int64(2*len(body))-100_000 {
		t.Errorf("%d bytes are counted for a batch of %d, which takes %d", used, len(body), took)
	}
}
