package pkcs11

import (
	"maps"
	"sync"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger/pkcs11/cryptoki"
)

// Boundary is the part of Cryptoki that this package calls.
type Boundary = cryptoki.Boundary

// Meter wraps a Boundary for tests and benchmarks: it counts the calls, delays each call as a network HSM
// would, and makes some calls fail or hang. The name of a call is the name of its method, such as "Encrypt".
// Set Config.Wrap to the meter's Wrap.
//
// The zero Meter only counts. All methods may be called at any time.
type Meter struct {
	mu      sync.Mutex
	counts  map[string]int
	latency time.Duration
	faults  map[string][]error
	hung    map[string]chan struct{}
}

// Wrap returns a Boundary that passes each call through the meter to b. A meter that wraps several boundaries
// counts their calls together.
func (m *Meter) Wrap(b Boundary) Boundary { return &metered{m, b} }

// Count returns the number of calls of that name until now. Failed calls count too.
func (m *Meter) Count(call string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.counts[call]
}

// Counts returns the number of calls by name.
func (m *Meter) Counts() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.counts)
}

// Reset sets all counts to zero.
func (m *Meter) Reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.counts)
}

// SetLatency makes every later call take d longer.
func (m *Meter) SetLatency(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.latency = d
}

// Fail makes the next n calls of that name return err, most often a p11.Error,
// without reaching the token.
func (m *Meter) Fail(call string, n int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.faults == nil {
		m.faults = map[string][]error{}
	}
	for range n {
		m.faults[call] = append(m.faults[call], err)
	}
}

// Heal cancels the failures that Fail requested and that have not happened yet.
func (m *Meter) Heal() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.faults)
}

// Hang makes calls of that name hang until release is called. Then the calls reach the token. release may
// be called more than once.
func (m *Meter) Hang(call string) (release func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hung == nil {
		m.hung = map[string]chan struct{}{}
	}
	c := make(chan struct{})
	m.hung[call] = c
	return sync.OnceFunc(func() { close(c) }) // later calls find c closed, and do not wait
}

// enter counts a call, delays it, and returns the error that Fail requested, before the call reaches the token.
func (m *Meter) enter(call string) error {
	m.mu.Lock()
	if m.counts == nil {
		m.counts = map[string]int{}
	}
	m.counts[call]++
	latency, hung := m.latency, m.hung[call]
	var err error
	if f := m.faults[call]; len(f) > 0 {
		err, m.faults[call] = f[0], f[1:]
	}
	m.mu.Unlock()
	if hung != nil {
		<-hung
	}
	time.Sleep(latency)
	return err
}

type metered struct {
	m *Meter
	b Boundary
}

func (w *metered) Initialize(o ...p11.InitializeOption) error {
	if err := w.m.enter("Initialize"); err != nil {
		return err
	}
	return w.b.Initialize(o...)
}

func (w *metered) Finalize() error {
	if err := w.m.enter("Finalize"); err != nil {
		return err
	}
	return w.b.Finalize()
}

func (w *metered) GetSlotList(present bool) ([]uint, error) {
	if err := w.m.enter("GetSlotList"); err != nil {
		return nil, err
	}
	return w.b.GetSlotList(present)
}

func (w *metered) GetTokenInfo(slot uint) (p11.TokenInfo, error) {
	if err := w.m.enter("GetTokenInfo"); err != nil {
		return p11.TokenInfo{}, err
	}
	return w.b.GetTokenInfo(slot)
}

func (w *metered) GetMechanismList(slot uint) ([]*p11.Mechanism, error) {
	if err := w.m.enter("GetMechanismList"); err != nil {
		return nil, err
	}
	return w.b.GetMechanismList(slot)
}

func (w *metered) OpenSession(slot, flags uint) (p11.SessionHandle, error) {
	if err := w.m.enter("OpenSession"); err != nil {
		return 0, err
	}
	return w.b.OpenSession(slot, flags)
}

func (w *metered) CloseSession(s p11.SessionHandle) error {
	if err := w.m.enter("CloseSession"); err != nil {
		return err
	}
	return w.b.CloseSession(s)
}

func (w *metered) GetSessionInfo(s p11.SessionHandle) (p11.SessionInfo, error) {
	if err := w.m.enter("GetSessionInfo"); err != nil {
		return p11.SessionInfo{}, err
	}
	return w.b.GetSessionInfo(s)
}

func (w *metered) Login(s p11.SessionHandle, user uint, pin string) error {
	if err := w.m.enter("Login"); err != nil {
		return err
	}
	return w.b.Login(s, user, pin)
}

func (w *metered) GenerateRandom(s p11.SessionHandle, n int) ([]byte, error) {
	if err := w.m.enter("GenerateRandom"); err != nil {
		return nil, err
	}
	return w.b.GenerateRandom(s, n)
}

func (w *metered) GenerateKey(s p11.SessionHandle, m []*p11.Mechanism, a []*p11.Attribute) (p11.ObjectHandle, error) {
	if err := w.m.enter("GenerateKey"); err != nil {
		return 0, err
	}
	return w.b.GenerateKey(s, m, a)
}

func (w *metered) CreateObject(s p11.SessionHandle, a []*p11.Attribute) (p11.ObjectHandle, error) {
	if err := w.m.enter("CreateObject"); err != nil {
		return 0, err
	}
	return w.b.CreateObject(s, a)
}

func (w *metered) DestroyObject(s p11.SessionHandle, o p11.ObjectHandle) error {
	if err := w.m.enter("DestroyObject"); err != nil {
		return err
	}
	return w.b.DestroyObject(s, o)
}

func (w *metered) GetAttributeValue(s p11.SessionHandle, o p11.ObjectHandle,
	a []*p11.Attribute) ([]*p11.Attribute, error) {
	if err := w.m.enter("GetAttributeValue"); err != nil {
		return nil, err
	}
	return w.b.GetAttributeValue(s, o, a)
}

func (w *metered) FindObjectsInit(s p11.SessionHandle, a []*p11.Attribute) error {
	if err := w.m.enter("FindObjectsInit"); err != nil {
		return err
	}
	return w.b.FindObjectsInit(s, a)
}

func (w *metered) FindObjects(s p11.SessionHandle, limit int) ([]p11.ObjectHandle, bool, error) {
	if err := w.m.enter("FindObjects"); err != nil {
		return nil, false, err
	}
	return w.b.FindObjects(s, limit)
}

func (w *metered) FindObjectsFinal(s p11.SessionHandle) error {
	if err := w.m.enter("FindObjectsFinal"); err != nil {
		return err
	}
	return w.b.FindObjectsFinal(s)
}

func (w *metered) Encrypt(s p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle, data []byte) ([]byte, error) {
	if err := w.m.enter("Encrypt"); err != nil {
		return nil, err
	}
	return w.b.Encrypt(s, m, key, data)
}

func (w *metered) GenerateKeyPair(s p11.SessionHandle, m []*p11.Mechanism,
	public, private []*p11.Attribute) (p11.ObjectHandle, p11.ObjectHandle, error) {
	if err := w.m.enter("GenerateKeyPair"); err != nil {
		return 0, 0, err
	}
	return w.b.GenerateKeyPair(s, m, public, private)
}

func (w *metered) DecryptInit(s p11.SessionHandle, padding *p11.OAEPParams, o p11.ObjectHandle) error {
	if err := w.m.enter("DecryptInit"); err != nil {
		return err
	}
	return w.b.DecryptInit(s, padding, o)
}

func (w *metered) Decrypt(s p11.SessionHandle, data []byte) ([]byte, error) {
	if err := w.m.enter("Decrypt"); err != nil {
		return nil, err
	}
	return w.b.Decrypt(s, data)
}

func (w *metered) Sign(s p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle, data []byte) ([]byte, error) {
	if err := w.m.enter("Sign"); err != nil {
		return nil, err
	}
	return w.b.Sign(s, m, key, data)
}
