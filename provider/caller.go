package provider

import "context"

type callerKey struct{}

// WithCaller returns a context for calls to providers on behalf of the user. Providers use the name to limit the work
// of one user. The context grants no right.
func WithCaller(ctx context.Context, user string) context.Context {
	return context.WithValue(ctx, callerKey{}, user)
}

// CallerOf returns the user of WithCaller, and "" if the server calls for itself.
func CallerOf(ctx context.Context) string {
	user, _ := ctx.Value(callerKey{}).(string)
	return user
}
