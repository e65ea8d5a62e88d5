package provider

import (
	"context"
	"fmt"
	"log/slog"
	"sort"
	"strings"

	"claviger/secret"
)

// Env is what a provider is opened with, beside its URI.
type Env struct {
	// Get returns a Hadoop property with its variables expanded; "" and false
	// where it is not set and has no default.
	Get func(name string) (string, bool)
	// Getenv reads the process's environment; os.Getenv outside tests.
	Getenv func(string) string
	// ConfDir is the folder of the *-site.xml files. A password file that is
	// named without a path is looked for there.
	ConfDir string
	// User is the name that we go by at another KMS under simple authentication.
	User string
	// Source: the provider is only read, for versions that the first does not have.
	Source bool
	Log    *slog.Logger
}

// Scheme is a line of the registry.
type Scheme struct {
	Name string // of the URI: "jceks", "kms", "pkcs11", ...
	// Open opens the provider that uri names. It refuses a URI, a property or a
	// file that is wrong with an error that names it and the cure.
	Open func(ctx context.Context, uri string, env Env) (Provider, error)
}

// Registry maps URI schemes to providers. It is a value, built in one visible
// list: package provider/builtin.
type Registry struct{ schemes map[string]Scheme }

// NewRegistry panics on a scheme that is named twice.
func NewRegistry(list ...Scheme) *Registry {
	r := &Registry{schemes: make(map[string]Scheme, len(list))}
	for _, s := range list {
		if _, dup := r.schemes[s.Name]; dup {
			panic("provider: scheme named twice: " + s.Name)
		}
		r.schemes[s.Name] = s
	}
	return r
}

// Schemes returns the known schemes, sorted.
func (r *Registry) Schemes() []string {
	names := make([]string, 0, len(r.schemes))
	for n := range r.schemes {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// Open opens the provider of a single URI.
func (r *Registry) Open(ctx context.Context, uri string, env Env) (Provider, error) {
	scheme, _, ok := strings.Cut(uri, ":")
	if !ok {
		return nil, fmt.Errorf("%q is not a provider URI: it has no scheme; known schemes: %s", secret.Value(uri),
			strings.Join(r.Schemes(), ", "))
	}
	s, ok := r.schemes[strings.ToLower(scheme)]
	if !ok {
		return nil, fmt.Errorf("provider URI %q: unknown scheme %q; known schemes: %s", secret.Value(uri), scheme,
			strings.Join(r.Schemes(), ", "))
	}
	return s.Open(ctx, uri, env)
}
