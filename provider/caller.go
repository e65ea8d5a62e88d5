package provider

import "context"

type callerKey struct{}

// WithCaller names the user for whom a provider is asked with ctx. Providers limit by
// it what one user can make them do; it gives no right.
func WithCaller(ctx context.Context, user string) context.Context {
	return context.WithValue(ctx, callerKey{}, user)
}

// CallerOf returns that user; "" where the server itself asks.
func CallerOf(ctx context.Context) string {
	user, _ := ctx.Value(callerKey{}).(string)
	return user
}
