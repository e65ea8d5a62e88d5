package provider

import (
	"context"
	"fmt"
	"log/slog"
	"sort"
	"strings"

	"claviger/secret"
)

// Env has what a provider needs to open.
type Env struct {
	// Get returns the value of a Hadoop property with its variables expanded. It returns "" and false if the property
	// is not set and has no default.
	Get func(name string) (string, bool)
	// Getenv reads the process's environment. It is os.Getenv except in tests.
	Getenv func(string) string
	// ConfDir is the folder of the *-site.xml files. A relative path of a password file begins there.
	ConfDir string
	// User is this server's user name at another KMS under simple authentication.
	User string
	// Source is true if the provider is a source, which is only read.
	Source bool
	Log    *slog.Logger
}

// Scheme is an entry of the registry.
type Scheme struct {
	Name string // of the URI: "jceks", "kms", "pkcs11", ...
	// Open opens the provider that uri names. If the URI, a property or a file is wrong, the error names it and says
	// what to do.
	Open func(ctx context.Context, uri string, env Env) (Provider, error)
}

// Registry maps URI schemes to providers. Package provider/builtin has the one list of all schemes.
type Registry struct{ schemes map[string]Scheme }

// NewRegistry makes a Registry. It panics if two schemes have the same name.
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
	s, err := r.SchemeOf(uri)
	if err != nil {
		return nil, err
	}
	return s.Open(ctx, uri, env)
}

// SchemeOf returns the scheme of a single URI. If there is no such provider, the error names the known schemes.
func (r *Registry) SchemeOf(uri string) (Scheme, error) {
	scheme, _, ok := strings.Cut(uri, ":")
	if !ok {
		return Scheme{}, fmt.Errorf("%q is not a provider URI: it has no scheme; known schemes: %s", secret.Value(uri),
			strings.Join(r.Schemes(), ", "))
	}
	s, ok := r.schemes[strings.ToLower(scheme)]
	if !ok {
		return Scheme{}, fmt.Errorf("provider URI %q: unknown scheme %q; known schemes: %s", secret.Value(uri), scheme,
			strings.Join(r.Schemes(), ", "))
	}
	return s, nil
}
