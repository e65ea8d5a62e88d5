// Package openapitest compares the requests and answers of a KMS with docs/openapi.yaml, for tests.
package openapitest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"

	"claviger/internal/modroot"
)

// Document is docs/openapi.yaml, and which of the answers in it a test has seen. One goroutine uses it.
type Document struct {
	doc  *openapi3.T
	seen map[string]bool // as Answers has them
}

// Load reads the document, which must be valid.
func Load(t testing.TB) *Document {
	t.Helper()
	for _, media := range []string{"text/html", "text/xml"} {
		openapi3filter.RegisterBodyDecoder(media, openapi3filter.PlainBodyDecoder)
	}
	doc, err := openapi3.NewLoader().LoadFromFile(filepath.Join(modroot.Path(), "docs", "openapi.yaml"))
	if err == nil {
		err = doc.Validate(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return &Document{doc: doc, seen: map[string]bool{}}
}

// Operation is an operation of the document.
type Operation struct {
	Method, Path string
	Statuses     []int
	Credentials  bool // it needs some
	Body         bool // it takes one
}

// Operations returns all operations, sorted by path and method.
func (d *Document) Operations() (list []Operation) {
	for path, item := range d.doc.Paths.Map() {
		for method, op := range item.Operations() {
			o := Operation{Method: method, Path: path, Body: op.RequestBody != nil, Credentials: op.Security == nil}
			for status := range op.Responses.Map() {
				n, err := strconv.Atoi(status)
				if err != nil {
					panic(err) // the document has no other answers
				}
				o.Statuses = append(o.Statuses, n)
			}
			slices.Sort(o.Statuses)
			list = append(list, o)
		}
	}
	slices.SortFunc(list, func(a, b Operation) int { return strings.Compare(a.Path+a.Method, b.Path+b.Method) })
	return list
}

// Unseen returns the documented answers, such as "GET /conf 404", that no call of Check had.
func (d *Document) Unseen() (answers []string) {
	for _, o := range d.Operations() {
		for _, status := range o.Statuses {
			if a := fmt.Sprint(o.Method, " ", o.Path, " ", status); !d.seen[a] {
				answers = append(answers, a)
			}
		}
	}
	return answers
}

// Exchange is a request and its answer.
type Exchange struct {
	Method, Target string // Target is the path and the query as they were sent
	RequestHeader  http.Header
	RequestBody    []byte
	Status         int
	Header         http.Header
	Body           []byte
}

// ErrNotDocumented is the error of Check for an operation that the document does not have.
var ErrNotDocumented = errors.New("docs/openapi.yaml does not have the operation")

// credentials are the parameters by which a client of any operation signs in.
var credentials = []string{"user.name", "doAs", "delegation"}

// Check compares an exchange with the document: the operation, the status, the type of the answer and each of its
// fields. If strict is true, it also compares the request: parameters, fields and types of the body.
func (d *Document) Check(e *Exchange, strict bool) error {
	request, err := e.request()
	if err != nil {
		return err
	}
	route, params := d.find(request)
	if route == nil {
		return fmt.Errorf("%w %s %s", ErrNotDocumented, e.Method, e.Target)
	}
	in := &openapi3filter.RequestValidationInput{Request: request, PathParams: params, Route: route,
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc,
			RejectWhenRequestBodyNotSpecified: true, SkipSettingDefaults: true}}
	if strict {
		err = errors.Join(openapi3filter.ValidateRequest(context.Background(), in), unknownParameters(request, route))
		if err != nil {
			return fmt.Errorf("the request %s %s: %w", e.Method, e.Target, err)
		}
	}
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: e.Status, Header: e.Header,
		Body: io.NopCloser(bytes.NewReader(e.Body)), Options: &openapi3filter.Options{IncludeResponseStatus: true,
			ExcludeResponseBody: len(e.Body) == 0 && e.Header.Get("Content-Type") == "" || e.Method == http.MethodHead}}
	if err := openapi3filter.ValidateResponse(context.Background(), out); err != nil {
		return fmt.Errorf("the answer to %s %s: %d %q %.300q: %w", e.Method, e.Target, e.Status,
			e.Header.Get("Content-Type"), e.Body, err)
	}
	d.seen[fmt.Sprint(route.Method, " ", route.Path, " ", e.Status)] = true
	return nil
}

// request returns the request for the library. HEAD is documented with GET.
func (e *Exchange) request() (*http.Request, error) {
	method := e.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	r, err := http.NewRequestWithContext(context.Background(), method, "http://localhost:9600"+e.Target,
		bytes.NewReader(e.RequestBody))
	if err != nil {
		return nil, err
	}
	if len(e.RequestBody) == 0 {
		r.Body = http.NoBody
	}
	r.Header = e.RequestHeader.Clone()
	return r, nil
}

// unknownParameters returns an error for each parameter of a query that the document does not have.
func unknownParameters(r *http.Request, route *routers.Route) error {
	var errs []error
	for name := range r.URL.Query() {
		if !slices.Contains(credentials, name) && route.Operation.Parameters.GetByInAndName("query", name) == nil {
			errs = append(errs, fmt.Errorf("the document does not have the parameter %s", name))
		}
	}
	return errors.Join(errs...)
}

// name is the only parameter in paths. A name may have slashes.
const name = "{name}"

// tokenPath is the documented path of operations on delegation tokens, which a client may send to any path.
const tokenPath = "/kms/v1/"

// find returns the operation of a request, or nil. Of two paths that match, the one with more fixed text is right: the
// last segment of key/x/_metadata is not part of the name.
func (d *Document) find(r *http.Request) (*routers.Route, map[string]string) {
	best, param := "", ""
	for path := range d.doc.Paths.Map() {
		before, after, named := strings.Cut(path, name)
		pattern := "^" + regexp.QuoteMeta(before) + "$"
		if named {
			pattern = "^" + regexp.QuoteMeta(before) + "(.+)" + regexp.QuoteMeta(after) + "$"
		}
		m := regexp.MustCompile(pattern).FindStringSubmatch(r.URL.EscapedPath())
		if m != nil && len(path) > len(best) {
			best, param = path, m[len(m)-1]
		}
	}
	if strings.HasSuffix(strings.ToUpper(r.URL.Query().Get("op")), "DELEGATIONTOKEN") {
		best = tokenPath
	}
	item := d.doc.Paths.Value(best)
	if item == nil || item.GetOperation(r.Method) == nil {
		return nil, nil
	}
	return &routers.Route{Spec: d.doc, Path: best, PathItem: item, Method: r.Method,
		Operation: item.GetOperation(r.Method)}, map[string]string{"name": param}
}
