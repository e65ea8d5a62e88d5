package hsm

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"claviger"
	"claviger/pkcs11"
)

// lateToken is a token that is opened after its provider. Until the token is released, its methods fail with kind
// Unavailable, except for the provider's own comparisons.
type lateToken struct {
	cfg   pkcs11.Config
	state atomic.Pointer[lateState] // nil at first
	at    atomic.Pointer[time.Time] // of the release

	mu         sync.Mutex
	released   chan struct{} // closed by release; made when it is needed
	onCall     func(pkcs11.Call)
	onFunction func(pkcs11.Function)
}

// lateState is the state of a lateToken.
type lateState struct {
	tok      *pkcs11.Token // nil: it is not open
	released bool
	why      error // why the last attempt failed; nil: none has failed
}

// joiningKey marks the context of the provider's own comparisons, see arrive.
type joiningKey struct{}

// get returns the token if it is open and ctx may use it.
func (l *lateToken) get(ctx context.Context, op string) (*pkcs11.Token, error) {
	s := l.state.Load()
	switch {
	case s == nil:
		return nil, claviger.Errorf(op, claviger.Unavailable, "", "the HSM has not answered since this server started")
	case s.released, s.tok != nil && ctx.Value(joiningKey{}) != nil:
		return s.tok, nil
	case s.why == nil:
		return nil, claviger.Errorf(op, claviger.Unavailable, "", "the HSM answers, and its token is compared with "+
			"the metastore")
	}
	return nil, claviger.Errorf(op, claviger.Unavailable, "", "the HSM has not been usable since this server started; "+
		"the server goes on trying: %w", s.why)
}

// attach sets the open token, which only contexts with joiningKey can use.
func (l *lateToken) attach(tok *pkcs11.Token) {
	l.mu.Lock()
	defer l.mu.Unlock()
	tok.OnCall(l.onCall)
	tok.OnFunction(l.onFunction)
	s := lateState{tok: tok}
	if was := l.state.Load(); was != nil {
		s.why = was.why
	}
	l.state.Store(&s)
}

// detach removes a token that does not fit the store, or that went away again.
func (l *lateToken) detach() { l.state.Store(nil) }

// fail stores why an attempt to open the token failed.
func (l *lateToken) fail(err error) { l.state.Store(&lateState{why: err}) }

// release lets all contexts use the token.
func (l *lateToken) release() {
	now := time.Now()
	l.at.Store(&now)
	l.state.Store(&lateState{tok: l.state.Load().tok, released: true})
	close(l.arrived())
}

// arrived returns the channel that release closes.
func (l *lateToken) arrived() chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.released == nil {
		l.released = make(chan struct{})
	}
	return l.released
}

// open returns the token if it is open, whoever may use it, and otherwise nil.
func (l *lateToken) open() *pkcs11.Token {
	if s := l.state.Load(); s != nil {
		return s.tok
	}
	return nil
}

// Info describes the token, as far as the configuration names it until it is open.
func (l *lateToken) Info() pkcs11.TokenInfo {
	if tok := l.open(); tok != nil {
		return tok.Info()
	}
	i := pkcs11.TokenInfo{Label: l.cfg.TokenLabel, Serial: l.cfg.Serial, Profile: l.cfg.Profile}
	if l.cfg.Slot != nil {
		i.Slot = *l.cfg.Slot
	}
	return i
}

func (l *lateToken) GenerateKey(ctx context.Context, id []byte, label string, bits int) error {
	tok, err := l.get(ctx, "hsm.GenerateKey")
	if err != nil {
		return err
	}
	return tok.GenerateKey(ctx, id, label, bits)
}

func (l *lateToken) Find(ctx context.Context, id []byte) (*pkcs11.KeyInfo, error) {
	tok, err := l.get(ctx, "hsm.Find")
	if err != nil {
		return nil, err
	}
	return tok.Find(ctx, id)
}

func (l *lateToken) FindLabel(ctx context.Context, label string) ([]pkcs11.KeyInfo, error) {
	tok, err := l.get(ctx, "hsm.FindLabel")
	if err != nil {
		return nil, err
	}
	return tok.FindLabel(ctx, label)
}

func (l *lateToken) StartDate(ctx context.Context, id []byte, label string) (time.Time, error) {
	tok, err := l.get(ctx, "hsm.StartDate")
	if err != nil {
		return time.Time{}, err
	}
	return tok.StartDate(ctx, id, label)
}

func (l *lateToken) Protection(ctx context.Context, id []byte, label string) ([]pkcs11.Protection, error) {
	tok, err := l.get(ctx, "hsm.Protection")
	if err != nil {
		return nil, err
	}
	return tok.Protection(ctx, id, label)
}

func (l *lateToken) List(ctx context.Context) ([]pkcs11.KeyInfo, error) {
	tok, err := l.get(ctx, "hsm.List")
	if err != nil {
		return nil, err
	}
	return tok.List(ctx)
}

func (l *lateToken) ListData(ctx context.Context, application string) ([]pkcs11.Data, error) {
	tok, err := l.get(ctx, "hsm.ListData")
	if err != nil {
		return nil, err
	}
	return tok.ListData(ctx, application)
}

func (l *lateToken) PutData(ctx context.Context, d pkcs11.Data) error {
	tok, err := l.get(ctx, "hsm.PutData")
	if err != nil {
		return err
	}
	return tok.PutData(ctx, d)
}

func (l *lateToken) DestroyData(ctx context.Context, application, label string) error {
	tok, err := l.get(ctx, "hsm.DestroyData")
	if err != nil {
		return err
	}
	return tok.DestroyData(ctx, application, label)
}

func (l *lateToken) Destroy(ctx context.Context, id []byte, label string) error {
	tok, err := l.get(ctx, "hsm.Destroy")
	if err != nil {
		return err
	}
	return tok.Destroy(ctx, id, label)
}

func (l *lateToken) CheckValue(ctx context.Context, id []byte, label string) ([]byte, error) {
	tok, err := l.get(ctx, "hsm.CheckValue")
	if err != nil {
		return nil, err
	}
	return tok.CheckValue(ctx, id, label)
}

func (l *lateToken) Prove(ctx context.Context, id []byte, label string, check []byte) error {
	tok, err := l.get(ctx, "hsm.Prove")
	if err != nil {
		return err
	}
	return tok.Prove(ctx, id, label, check)
}

func (l *lateToken) Unusable(ctx context.Context, id []byte, label string) (bool, error) {
	tok, err := l.get(ctx, "hsm.Unusable")
	if err != nil {
		return false, err
	}
	return tok.Unusable(ctx, id, label)
}

func (l *lateToken) Choose(ctx context.Context, id []byte, label string, check []byte) error {
	tok, err := l.get(ctx, "hsm.Choose")
	if err != nil {
		return err
	}
	return tok.Choose(ctx, id, label, check)
}

func (l *lateToken) EncryptBlocks(ctx context.Context, id []byte, label string, check, blocks []byte) error {
	tok, err := l.get(ctx, "hsm.EncryptBlocks")
	if err != nil {
		return err
	}
	return tok.EncryptBlocks(ctx, id, label, check, blocks)
}

func (l *lateToken) EncryptAlone(ctx context.Context, id []byte, label string, check, blocks []byte) error {
	tok, err := l.get(ctx, "hsm.EncryptAlone")
	if err != nil {
		return err
	}
	return tok.EncryptAlone(ctx, id, label, check, blocks)
}

func (l *lateToken) Ping(ctx context.Context) error {
	tok, err := l.get(ctx, "hsm.Ping")
	if err != nil {
		return err
	}
	return tok.Ping(ctx)
}

// Hidden reports no hidden keys until the token is open.
func (l *lateToken) Hidden() error {
	if tok := l.open(); tok != nil {
		return tok.Hidden()
	}
	return nil
}

// OnReset does nothing: the provider sets its function when the token is open.
func (l *lateToken) OnReset(func()) {}

func (l *lateToken) OnCall(f func(pkcs11.Call)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.onCall = f
	if tok := l.open(); tok != nil {
		tok.OnCall(f)
	}
}

func (l *lateToken) OnFunction(f func(pkcs11.Function)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.onFunction = f
	if tok := l.open(); tok != nil {
		tok.OnFunction(f)
	}
}

// Sessions returns no sessions until the token is open.
func (l *lateToken) Sessions() (used, limit int) {
	if tok := l.open(); tok != nil {
		return tok.Sessions()
	}
	return 0, 0
}

// Close closes the token if it is open. No attempt to open it may be under way.
func (l *lateToken) Close() error {
	if tok := l.open(); tok != nil {
		return tok.Close()
	}
	return nil
}
