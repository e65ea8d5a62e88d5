package provider

import (
	"context"
	"fmt"
	"log/slog"
	"sort"
	"strings"

	"claviger/secret"
)

// Env is the surroundings in which a provider is opened.
type Env struct {
	// Get returns a Hadoop property with its variables expanded; "" and false where the property is not set and has
	// no default.
	Get func(name string) (string, bool)
	// Getenv reads the process's environment; os.Getenv outside tests.
	Getenv func(string) string
	// ConfDir is the folder of the *-site.xml files. A password file that is named without a path is read from there.
	ConfDir string
	// User is this server's user name at another KMS under simple authentication.
	User string
	// Source: the provider is a source, which is only read.
	Source bool
	Log    *slog.Logger
}

// Scheme is a line of the registry.
type Scheme struct {
	Name string // of the URI: "jceks", "kms", "pkcs11", ...
	// Open opens the provider that uri names. For a wrong URI, property or file its error names that and the cure.
	Open func(ctx context.Context, uri string, env Env) (Provider, error)
}

// Registry maps URI schemes to providers. It is a value, built in one visible
// list: package provider/builtin.
type Registry struct{ schemes map[string]Scheme }

// NewRegistry makes a Registry. It panics where two schemes have one name.
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
