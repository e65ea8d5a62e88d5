package pages

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"claviger"
	"claviger/kmswire"
)

// recorder keeps the answer of the REST API.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header { return r.header }

func (r *recorder) WriteHeader(status int) { r.status = status }

func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }

// problem is an error that the REST API answered.
type problem struct {
	Status  int
	Message string
}

func (p *problem) Error() string { return p.Message }

// rest sends a request to the REST API in the name of the user. path is below /kms/v1/, and escaped; body may be nil.
// It returns the body of the answer, or a *problem with the text that the API gives any client.
func (s *session) rest(method, path string, body []byte) ([]byte, error) {
	target := "/kms/v1/" + path
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", target, err)
	}
	r := (&http.Request{
		Method: method, URL: u, RequestURI: target, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(body)),
		ContentLength: int64(len(body)), Host: s.r.Host, RemoteAddr: s.r.RemoteAddr, TLS: s.r.TLS,
	}).WithContext(s.r.Context())
	w := &recorder{header: http.Header{}, status: http.StatusOK}
	s.KMS.As(s.user, w, r)
	if w.status >= http.StatusOK && w.status < http.StatusMultipleChoices {
		return w.body.Bytes(), nil
	}
	p := &problem{Status: w.status, Message: http.StatusText(w.status)}
	if e := kmswire.ReadException(w.body.Bytes()); e != nil && e.Message != "" {
		p.Message = e.Message
	}
	return nil, p
}

// keyPath returns the path of a key, as in key/NAME.
func keyPath(prefix, key string) string { return prefix + url.PathEscape(key) }

// names returns the names of all keys.
func (s *session) names() ([]string, error) {
	body, err := s.rest(http.MethodGet, "keys/names", nil)
	if err != nil {
		return nil, err
	}
	return kmswire.ReadNames(body)
}

// metadataAtOnce is how many keys one request for metadata names. Each request leaves an audit record.
const metadataAtOnce = 100

// metadata returns the metadata of keys, in their order. An entry is nil for a key that was deleted meanwhile. If the
// user may not read one of the keys, the error is of status 403.
func (s *session) metadata(keys []string) ([]*claviger.Metadata, error) {
	var all []*claviger.Metadata
	for len(keys) > 0 {
		n := min(len(keys), metadataAtOnce)
		var query []string
		for _, key := range keys[:n] {
			query = append(query, "key="+url.QueryEscape(key))
		}
		body, err := s.rest(http.MethodGet, "keys/metadata?"+strings.Join(query, "&"), nil)
		if err != nil {
			return nil, err
		}
		list, err := kmswire.ReadMetadataList(body)
		if err != nil {
			return nil, err
		}
		if len(list) != n {
			return nil, fmt.Errorf("the KMS answered metadata of %d keys, not of %d", len(list), n)
		}
		all, keys = append(all, list...), keys[n:]
	}
	return all, nil
}

// metadataOf returns the metadata of one key; nil if there is no such key.
func (s *session) metadataOf(key string) (*claviger.Metadata, error) {
	body, err := s.rest(http.MethodGet, keyPath("key/", key)+"/_metadata", nil)
	if err != nil {
		return nil, err
	}
	return kmswire.ReadMetadata(body)
}

// describe returns the descriptions of a key, and of the deleted keys of its name.
func (s *session) describe(key string) (list []kmswire.KeyDescription, err error) {
	body, err := s.rest(http.MethodGet, keyPath("trustee/key/", key), nil)
	if err != nil {
		return nil, err
	}
	return list, json.Unmarshal(body, &list)
}

// deleted returns the deleted keys that the user may bring back.
func (s *session) deleted() (list []kmswire.DeletedKey, err error) {
	body, err := s.rest(http.MethodGet, "trustee/keys/deleted", nil)
	if err != nil {
		return nil, err
	}
	return list, json.Unmarshal(body, &list)
}
