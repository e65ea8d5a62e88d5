package kmsclient_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/provider/kmsclient"
)

// TestOddLists checks that an answer that cannot be read is an error of kind Internal. It means neither that there are
// no keys nor that the KMS does not answer.
func TestOddLists(t *testing.T) {
	for name, answer := range map[string]func(http.ResponseWriter){
		"empty body":       json200(""),
		"null":             json200("null"),
		"object":           json200("{ }"),
		"null among names": json200(`["k", null]`),
		"truncated":        json200(`["k", "k2`),
		"two lists":        json200(`["k"] ["k2"]`),
		"204":              func(w http.ResponseWriter) { w.WriteHeader(http.StatusNoContent) },
		"HTML": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, "<html>signed out</html>")
		},
		"no type, no body": func(w http.ResponseWriter) { w.WriteHeader(http.StatusOK) },
		"cut off": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, `["k"]`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.fault = faultOf(func(path string) bool { return strings.HasPrefix(path, "/kms/v1/keys/") }, answer)
			p := open(t, uriOf(serve(t, f)), kmsclient.Options{SleepBase: time.Millisecond, SleepMax: time.Millisecond})
			if names, err := p.Keys(t.Context()); err == nil {
				t.Errorf("Keys returned %q", names)
			} else if name != "cut off" && !claviger.Is(err, claviger.Internal) {
				t.Errorf("Keys: kind %v: %v", claviger.KindOf(err), err)
			}
			if list, err := p.Metadata(t.Context(), "k"); err == nil {
				t.Errorf("Metadata returned %v", list)
			}
		})
	}
}

// TestRangersAbsence checks the answers of Ranger KMS 2.0.0 about an absent key. They mean that the key is absent only
// if the list of names or the metadata confirm that; otherwise they are an error. The bodies are Ranger's, with the
// spaces of its Jackson.
func TestRangersAbsence(t *testing.T) {
	npe := `{
  "RemoteException" : {
    "message" : null,
    "exception" : "NullPointerException",
    "javaClassName" : "java.lang.NullPointerException"
  }
}`
	for name, answer := range map[string]func(http.ResponseWriter){
		"200 empty": json200(""),
		"404 { }":   jsonStatus(http.StatusNotFound, "{ }"),
		"500":       jsonStatus(http.StatusInternalServerError, npe),
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			p := open(t, uriOf(serve(t, f)), kmsclient.Options{SleepBase: time.Millisecond, SleepMax: time.Millisecond})
			if _, err := p.Create(t.Context(), spec("k")); err != nil {
				t.Fatal(err)
			}
			edek := claviger.EDEK{IV: make([]byte, 16), Material: make([]byte, 16)}
			reads := map[string]func(key string) error{
				"Current": func(key string) error { _, err := p.Current(t.Context(), key); return err },
				"Version": func(key string) error { _, err := p.Version(t.Context(), key+"@0"); return err },
				"Versions": func(key string) error {
					vs, err := p.Versions(t.Context(), key)
					if err == nil && len(vs) == 0 {
						return claviger.E("", claviger.KeyNotFound, key, nil)
					}
					return err
				},
				"Metadata": func(key string) error {
					ms, err := p.Metadata(t.Context(), key)
					if err == nil && ms[0] == nil {
						return claviger.E("", claviger.KeyNotFound, key, nil)
					}
					return err
				},
				"Unwrap": func(key string) error {
					e := edek
					e.Version = key + "@0"
					_, err := p.Unwrap(t.Context(), key, "", []claviger.EDEK{e})
					return err
				},
			}
			for read, call := range reads {
				f.lock(func() {
					f.fault = faultOf(func(path string) bool {
						if read == "Metadata" {
							return path == "/kms/v1/keys/metadata"
						}
						return strings.HasPrefix(path, "/kms/v1/key/") || strings.HasPrefix(path, "/kms/v1/keyversion/")
					}, answer)
				})
				if err := call("absent"); !claviger.Is(err, claviger.KeyNotFound) &&
					!claviger.Is(err, claviger.VersionNotFound) {
					t.Errorf("%s of an absent key: %v", read, err)
				}
				// Ranger lists "k" but also finds it by the name "K", so "K" may exist.
				for _, key := range []string{"k", "K"} {
					if read != "Metadata" && key == "K" {
						continue // the fake, unlike Ranger, has metadata of the exact name only
					}
					if err := call(key); !claviger.Is(err, claviger.Internal) {
						t.Errorf("%s of %s, which exists: %v", read, key, err)
					}
				}
			}
			// If the list cannot be read, no key is known to be absent.
			f.lock(func() { f.fault = faultOf(func(string) bool { return true }, answer) })
			for read, call := range reads {
				if err := call("absent"); !claviger.Is(err, claviger.Internal) {
					t.Errorf("%s while every answer is unexpected: %v", read, err)
				}
			}
		})
	}
}

// TestOneKeyFails checks that an error of a KMS about one key does not mean that the KMS is unavailable.
func TestOneKeyFails(t *testing.T) {
	f := newFake(t)
	p := open(t, uriOf(serve(t, f)), kmsclient.Options{SleepBase: time.Millisecond, SleepMax: time.Millisecond})
	if _, err := p.Create(t.Context(), spec("good")); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Create(t.Context(), spec("bad")); err != nil {
		t.Fatal(err)
	}
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.RawQuery, "key=bad") {
			return false
		}
		jsonStatus(http.StatusInternalServerError,
			`{"RemoteException":{"message":"class javax.crypto.spec.SecretKeySpec cannot be cast",`+
				`"exception":"ClassCastException","javaClassName":"java.lang.ClassCastException"}}`)(w)
		return true
	}
	for _, names := range [][]string{{"bad"}, {"good", "bad"}} {
		_, err := p.Metadata(t.Context(), names...)
		if !claviger.Is(err, claviger.Internal) || !strings.Contains(err.Error(), "ClassCastException") ||
			strings.Contains(err.Error(), "no host") {
			t.Errorf("%q: kind %v: %v", names, claviger.KindOf(err), err)
		}
	}
	if ms, err := p.Metadata(t.Context(), "good"); err != nil || ms[0] == nil {
		t.Errorf("good: %v, %v", ms, err)
	}
}

func json200(body string) func(http.ResponseWriter) { return jsonStatus(http.StatusOK, body) }

func jsonStatus(status int, body string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// faultOf returns a fault that sends the answer to all requests with a matching path, except logins.
func faultOf(match func(path string) bool, answer func(http.ResponseWriter)) func(http.ResponseWriter,
	*http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodOptions || !match(r.URL.EscapedPath()) {
			return false
		}
		answer(w)
		return true
	}
}
