package kmsclient_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"claviger"
	"claviger/eek"
	"claviger/provider"
	"claviger/provider/memory"
	"claviger/secret"
)

// fakeKMS is an HTTP handler with a memory provider. It answers as the KMS of Hadoop 3.4 does: with its JSON, login,
// statuses and messages (hadoop-kms's KMSExceptionsProvider, KMS.java). It allows everything that deny does not forbid.
type fakeKMS struct {
	keys *memory.Provider

	mu       sync.Mutex
	calls    []string            // accepted requests: "METHOD /path?query as user"
	logins   int                 // number of handshakes
	cookies  map[string]string   // user by cookie
	proxies  map[string][]string // users that a user may impersonate
	deny     map[string]error    // refusals by operation and user
	fault    func(w http.ResponseWriter, r *http.Request) bool
	material bool // the user has the GET right, so versions have material
}

type remoteError struct {
	status  int
	class   string
	message string
}

func (e *remoteError) Error() string { return e.message }

func newFake(t testing.TB) *fakeKMS {
	f := &fakeKMS{
		keys: memory.New(memory.Config{SequentialIDs: true, URI: "jceks://file@/fake"}), cookies: map[string]string{},
		proxies: map[string][]string{}, deny: map[string]error{}, material: true,
	}
	t.Cleanup(func() { _ = f.keys.Close() })
	return f
}

func (f *fakeKMS) lock(do func()) { f.mu.Lock(); defer f.mu.Unlock(); do() }

// takeCalls returns the recorded calls, and clears them.
func (f *fakeKMS) takeCalls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.calls
	f.calls = nil
	return c
}

func (f *fakeKMS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	fault := f.fault
	f.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	user, ok := f.user(w, r)
	if !ok {
		w.Header().Set("WWW-Authenticate", "PseudoAuth")
		w.Header().Set("Content-Type", "text/html;charset=iso-8859-1")
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	as := r.URL.Query().Get("doAs")
	if as != "" {
		f.mu.Lock()
		allowed := slices.Contains(f.proxies[user], as)
		f.mu.Unlock()
		if !allowed {
			write(w, &remoteError{403, "org.apache.hadoop.security.authorize.AuthorizationException", "User: " + user +
				" is not allowed to impersonate " + as})
			return
		}
		user = as
	}
	if r.Method == http.MethodOptions {
		w.Header().Set("Content-Type", "application/vnd.sun.wadl+xml")
		return
	}
	f.lock(func() {
		f.calls = append(f.calls, strings.TrimSuffix(r.Method+" "+r.URL.EscapedPath()+"?"+r.URL.RawQuery, "?")+" as "+
			user)
	})
	status, v, err := f.route(r, user)
	if err != nil {
		write(w, err)
		return
	}
	if v == nil {
		w.Header().Set("Content-Type", "text/plain;charset=utf-8")
		w.WriteHeader(status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// user authenticates by cookie, or by user.name. In that case it sets a cookie.
func (f *fakeKMS) user(w http.ResponseWriter, r *http.Request) (string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c, err := r.Cookie("hadoop.auth"); err == nil {
		if user, ok := f.cookies[c.Value]; ok {
			return user, true
		}
	}
	user := r.URL.Query().Get("user.name")
	if user == "" {
		return "", false
	}
	f.logins++
	cookie := fmt.Sprintf("u=%s&p=%s&t=simple-dt&e=99999&s=n%d+/=", user, user, f.logins)
	f.cookies[cookie] = user
	w.Header().Add("Set-Cookie", `hadoop.auth="`+cookie+`"; HttpOnly`)
	return user, true
}

func write(w http.ResponseWriter, err error) {
	e := toRemote(err)
	class := e.class[strings.LastIndexByte(e.class, '.')+1:]
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.status)
	m := map[string]any{"message": e.message, "exception": class, "javaClassName": e.class}
	if e.message == "" {
		m["message"] = nil
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"RemoteException": m})
}

func ioException(format string, args ...any) error {
	return &remoteError{500, "java.io.IOException", fmt.Sprintf(format, args...)}
}

func illegalArgument(format string, args ...any) error {
	return &remoteError{400, "java.lang.IllegalArgumentException", fmt.Sprintf(format, args...)}
}

func toRemote(err error) *remoteError {
	if e, ok := err.(*remoteError); ok {
		return e
	}
	return &remoteError{500, "java.lang.NullPointerException", err.Error()}
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// unb64 accepts the same as Hadoop: both alphabets, with or without padding.
func unb64(s string) []byte {
	s = strings.NewReplacer("-", "+", "_", "/", "=", "").Replace(s)
	b, _ := base64.RawStdEncoding.DecodeString(s)
	return b
}

func (f *fakeKMS) version(v claviger.KeyVersion) map[string]any {
	m := map[string]any{"name": v.Key, "versionName": v.Name, "material": nil}
	if f.material && v.Material != nil {
		m["material"] = b64(v.Material)
	}
	return m
}

func eekOf(key string, e claviger.EDEK) map[string]any {
	return map[string]any{"versionName": e.Version, "iv": b64(e.IV), "encryptedKeyVersion": map[string]any{
		"name": key, "versionName": "EEK", "material": b64(e.Material)}}
}

func metadataOf(m *claviger.Metadata) map[string]any {
	if m == nil {
		return map[string]any{}
	}
	attributes := map[string]string{claviger.ACLNameAttribute: m.Name}
	for k, v := range m.Attributes {
		attributes[k] = v
	}
	return map[string]any{"name": m.Name, "cipher": m.Cipher, "length": m.BitLength, "description": m.Description,
		"attributes": attributes, "created": m.Created.UnixMilli(), "versions": m.Versions}
}

// route serves one call. A nil value means an empty answer.
func (f *fakeKMS) route(r *http.Request, user string) (int, any, error) {
	path, ok := strings.CutPrefix(r.URL.EscapedPath(), "/kms/v1/")
	if !ok {
		return 0, nil, notFound(r)
	}
	denied := func(kmsOp string) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.deny[kmsOp+" "+user]
	}
	if rest, ok := strings.CutPrefix(path, "keyversion/"); ok {
		return f.keyVersion(r, rest, denied)
	}
	if rest, ok := strings.CutPrefix(path, "key/"); ok {
		return f.key(r, rest, denied)
	}
	switch {
	case path == "keys" && r.Method == "POST":
		v, err := f.create(r)
		return http.StatusCreated, v, err
	case path == "keys/names":
		if err := denied("GET_KEYS"); err != nil {
			return 0, nil, err
		}
		names, err := f.keys.Keys(r.Context())
		return 200, append([]string{}, names...), err // [ ] if there is none, as Java's KMS
	case path == "keys/metadata":
		list, err := f.keys.Metadata(r.Context(), r.URL.Query()["key"]...)
		out := []any{}
		for _, m := range list {
			out = append(out, metadataOf(m))
		}
		return 200, out, err
	}
	return 0, nil, notFound(r)
}

func notFound(r *http.Request) error {
	return &remoteError{500, "com.sun.jersey.api.NotFoundException", "null for uri: " + r.URL.String()}
}

// key serves one call about one key. rest is the path from the key's name on.
func (f *fakeKMS) key(r *http.Request, rest string, denied func(string) error) (int, any, error) {
	ctx := r.Context()
	escaped, sub := rest, ""
	for _, s := range []string{"/_versions", "/_currentversion", "/_metadata", "/_eek", "/_reencryptbatch",
		"/_invalidatecache"} {
		if before, ok := strings.CutSuffix(rest, s); ok {
			escaped, sub = before, s
		}
	}
	key, err := url.PathUnescape(escaped)
	if err != nil {
		return 0, nil, illegalArgument("bad escape")
	}
	switch r.Method + sub {
	case "GET/_versions":
		list, err := f.keys.Versions(ctx, key)
		out := []any{}
		for _, v := range list {
			out = append(out, f.version(v))
		}
		return 200, out, err
	case "GET/_currentversion":
		v, err := f.keys.Current(ctx, key)
		if claviger.Is(err, claviger.KeyNotFound) {
			return 200, map[string]any{}, nil
		}
		return 200, f.version(v), err
	case "GET/_eek":
		return f.generate(ctx, key, r.URL.Query(), denied)
	case "POST/_reencryptbatch":
		return f.reencrypt(r, key, denied)
	case "POST/_invalidatecache":
		return 200, nil, nil
	case "POST":
		return f.roll(r, key)
	case "DELETE":
		if err := denied("DELETE_KEY"); err != nil {
			return 0, nil, err
		}
		err := f.keys.Delete(ctx, key)
		if claviger.Is(err, claviger.KeyNotFound) {
			return 0, nil, ioException("Key %s does not exist in %s", key, f.keys.URI())
		}
		return 200, nil, err
	}
	return 0, nil, &remoteError{500, "javax.ws.rs.WebApplicationException", ""}
}

func (f *fakeKMS) create(r *http.Request) (any, error) {
	var in struct {
		Name, Cipher string
		Length       int
		Material     *string
		Description  *string
		Attributes   map[string]string
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		return nil, err
	}
	spec := provider.Spec{Name: in.Name, Cipher: in.Cipher, BitLength: in.Length, Description: in.Description,
		Attributes: in.Attributes}
	if in.Material != nil {
		spec.Material = append(secret.Bytes{}, unb64(*in.Material)...)
	}
	v, err := f.keys.Create(r.Context(), spec)
	switch {
	case claviger.Is(err, claviger.KeyExists):
		return nil, ioException("Key %s already exists in %s", in.Name, f.keys.URI())
	case claviger.Is(err, claviger.InvalidKeySize):
		return nil, &remoteError{400, "java.security.InvalidParameterException",
			"Wrong keysize: must be equal to 128, 192 or 256"}
	case claviger.Is(err, claviger.UnknownCipher):
		return nil, &remoteError{500, "java.lang.reflect.UndeclaredThrowableException", ""}
	case err != nil:
		return nil, err
	}
	return f.version(v), nil
}

func (f *fakeKMS) roll(r *http.Request, key string) (int, any, error) {
	var in struct{ Material *string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		return 0, nil, err
	}
	var material secret.Bytes
	if in.Material != nil {
		material = append(secret.Bytes{}, unb64(*in.Material)...)
	}
	v, err := f.keys.Roll(r.Context(), key, material)
	switch {
	case claviger.Is(err, claviger.KeyNotFound):
		return 0, nil, ioException("Can't find Metadata for key %s", key)
	case claviger.Is(err, claviger.MaterialLength):
		return 0, nil, ioException("%s", err.(*claviger.Error).Err)
	}
	return 200, f.version(v), err
}

func (f *fakeKMS) generate(ctx context.Context, key string, q url.Values, denied func(string) error) (int, any, error) {
	if err := denied("GENERATE_EEK"); err != nil {
		return 0, nil, err
	}
	n, err := strconv.Atoi(q.Get("num_keys"))
	if err != nil || q.Get("eek_op") != "generate" {
		return 0, nil, illegalArgument("Wrong eek_op value, it must be generate or decrypt")
	}
	v, err := f.keys.Current(ctx, key)
	if err != nil {
		return 0, nil,
			ioException("org.apache.hadoop.thirdparty.com.google.common.util.concurrent."+
				"UncheckedExecutionException: java.lang.NullPointerException: No KeyVersion exists for key '%s' ", key)
	}
	edeks, err := eek.Generate(ctx, f.keys, v.Name, v.BitLength/8, n, nil)
	out := []any{}
	for _, e := range edeks {
		out = append(out, eekOf(key, e))
	}
	return 200, out, err
}

func (f *fakeKMS) keyVersion(r *http.Request, rest string, denied func(string) error) (int, any, error) {
	escaped, decrypt := strings.CutSuffix(rest, "/_eek")
	name, err := url.PathUnescape(escaped)
	if err != nil {
		return 0, nil, illegalArgument("bad escape")
	}
	v, err := f.keys.Version(r.Context(), name)
	if !decrypt {
		if claviger.Is(err, claviger.VersionNotFound) {
			return 200, map[string]any{}, nil
		}
		return 200, f.version(v), err
	}
	if err := denied("DECRYPT_EEK"); err != nil {
		return 0, nil, err
	}
	if err != nil {
		return 0, nil, illegalArgument("'%s' not found", name)
	}
	var in struct{ Name, IV, Material string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.URL.Query().Get("eek_op") != "decrypt" {
		return 0, nil, illegalArgument("Wrong eek_op value, it must be generate or decrypt")
	}
	if in.Name != v.Key {
		return 0, nil, illegalArgument("KeyVersion '%s' does not belong to the key '%s'", name, in.Name)
	}
	deks, err := eek.Unwrap(r.Context(), f.keys, []claviger.EDEK{{Version: name, IV: unb64(in.IV),
		Material: unb64(in.Material)}})
	if err != nil {
		return 0, nil, ioException("java.security.InvalidAlgorithmParameterException: Wrong IV " +
			"length: must be 16 bytes long")
	}
	return 200, map[string]any{"name": v.Key, "versionName": "EK", "material": b64(deks[0])}, nil
}

func (f *fakeKMS) reencrypt(r *http.Request, key string, denied func(string) error) (int, any, error) {
	if err := denied("REENCRYPT_EEK_BATCH"); err != nil {
		return 0, nil, err
	}
	var in []struct {
		VersionName string
		IV          string
		Inner       struct{ VersionName, Material string } `json:"encryptedKeyVersion"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		return 0, nil, err
	}
	var edeks []claviger.EDEK
	for _, e := range in {
		if e.Inner.VersionName != "EEK" {
			return 0, nil, illegalArgument("encryptedKey version name must be 'EEK', but found '%s'",
				e.Inner.VersionName)
		}
		if k, _ := claviger.KeyOfVersion(e.VersionName); k != key {
			return 0, nil, illegalArgument("KeyVersion '%s' does not belong to the key '%s'", e.VersionName, key)
		}
		if _, err := f.keys.Version(r.Context(), e.VersionName); err != nil {
			return 0, nil, illegalArgument("'%s' not found", e.VersionName)
		}
		edeks = append(edeks, claviger.EDEK{Version: e.VersionName, IV: unb64(e.IV), Material: unb64(e.Inner.Material)})
	}
	out := []any{}
	if len(edeks) == 0 {
		return 200, out, nil
	}
	cur, err := f.keys.Current(r.Context(), key)
	if err != nil {
		return 0, nil, err
	}
	edeks, err = eek.Reencrypt(r.Context(), f.keys, f.keys, cur.Name, edeks)
	for _, e := range edeks {
		out = append(out, eekOf(key, e))
	}
	return 200, out, err
}
