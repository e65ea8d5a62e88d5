package providertest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/secret"
)

func testConcurrent(t *testing.T, s Suite) {
	t.Run("Create", func(t *testing.T) { testCreateRace(t, s.open(t)) })
	t.Run("Roll", func(t *testing.T) { testRollRace(t, s.open(t)) })
	t.Run("Delete", func(t *testing.T) { testDeleteRace(t, s.open(t)) })
	t.Run("UseWhileRolling", func(t *testing.T) { testUseWhileRolling(t, s.open(t)) })
}

func testCreateRace(t *testing.T, p provider.Provider) {
	for range 5 {
		name := keyName("race-create")
		const n = 8
		var won []claviger.KeyVersion
		var mu sync.Mutex
		inParallel(n, func(i int) {
			sp := spec(name, 128)
			sp.Description = ptr(fmt.Sprint(i))
			v, err := p.Create(t.Context(), sp)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won = append(won, v)
			} else if !claviger.Is(err, claviger.KeyExists) {
				t.Errorf("a Create that came too late returned %v, want kind KeyExists", err)
			}
		})
		if len(won) != 1 {
			t.Fatalf("%d of %d calls made the key, want 1", len(won), n)
		}
		if list := versions(t, p, name); len(list) != 1 || !sameVersion(list[0], won[0]) {
			t.Errorf("versions %q; the first Create made %q", names(list), won[0].Name)
		}
	}
}

func testRollRace(t *testing.T, p provider.Provider) {
	name := keyName("race-roll")
	made := []string{create(t, p, spec(name, 128)).Name}
	var mu sync.Mutex
	inParallel(8, func(int) {
		for range 3 {
			v, err := p.Roll(t.Context(), name, nil)
			if err != nil {
				t.Errorf("Roll: %v", err)
				return
			}
			mu.Lock()
			made = append(made, v.Name)
			mu.Unlock()
		}
	})
	list := versions(t, p, name)
	got := names(list)
	slices.Sort(got)
	slices.Sort(made)
	if !slices.Equal(got, made) || len(slices.Compact(got)) != 25 {
		t.Errorf("versions %q, made %q", got, made)
	}
	if cur, err := p.Current(t.Context(), name); err != nil || cur.Name != list[len(list)-1].Name {
		t.Errorf("the current version is %q, %v; the newest is %q", cur.Name, err, list[len(list)-1].Name)
	}
	if m := metadata(t, p, name); m.Versions != 25 {
		t.Errorf("metadata counts %d versions", m.Versions)
	}
}

func testDeleteRace(t *testing.T, p provider.Provider) {
	name := keyName("race-delete")
	create(t, p, spec(name, 128))
	var mu sync.Mutex
	deleted := 0
	inParallel(6, func(int) {
		err := p.Delete(t.Context(), name)
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			deleted++
		} else if !claviger.Is(err, claviger.KeyNotFound) {
			t.Errorf("a Delete that came too late returned %v, want kind KeyNotFound", err)
		}
	})
	if deleted != 1 {
		t.Errorf("%d calls deleted the key, want 1", deleted)
	}
}

func testUseWhileRolling(t *testing.T, p provider.Provider) {
	name := keyName("race-use")
	first := create(t, p, spec(name, 256))
	use := useOf(t, p, name, first.Name)
	want := use(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if got := use(t); !got.Equal(want) {
					t.Error("the first version gives another result while the key is rolled")
					return
				}
				if _, err := p.Current(t.Context(), name); err != nil {
					t.Errorf("Current while rolling: %v", err)
					return
				}
			}
		})
	}
	for range 10 {
		roll(t, p, name)
	}
	close(stop)
	wg.Wait()
}

// useOf returns a function that encrypts or unwraps something fixed under the version. The result is always the same
// for the same key.
func useOf(t *testing.T, p provider.Provider, key, version string) func(*testing.T) secret.Bytes {
	if enc, ok := p.(provider.BlockEncrypter); ok {
		return func(t *testing.T) secret.Bytes {
			blocks := make(secret.Bytes, 64)
			if err := enc.EncryptBlocks(t.Context(), version, blocks); err != nil {
				t.Errorf("EncryptBlocks: %v", err)
			}
			return blocks
		}
	}
	service := p.(provider.EDEKService)
	e := claviger.EDEK{Version: version, IV: make([]byte, claviger.IVSize), Material: make([]byte, 32)}
	return func(t *testing.T) secret.Bytes {
		deks, err := service.Unwrap(t.Context(), key, "", []claviger.EDEK{e})
		if err != nil || len(deks) != 1 {
			t.Errorf("Unwrap: %d, %v", len(deks), err)
			return nil
		}
		return deks[0]
	}
}

// inParallel runs f(0) to f(n-1) at the same time, and waits until all have returned.
func inParallel(n int, f func(int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			f(i)
		})
	}
	close(start)
	wg.Wait()
}

// call is one call of a provider's method.
type call struct {
	name string
	f    func(context.Context) error
}

// calls returns one call for each method of p. key must exist, and have the version.
func calls(p provider.Provider, key, version string) []call {
	e := claviger.EDEK{Version: version, IV: make([]byte, claviger.IVSize), Material: make([]byte, 16)}
	list := []call{
		{"Keys", func(ctx context.Context) error { return errorOf(p.Keys(ctx)) }},
		{"Metadata", func(ctx context.Context) error { return errorOf(p.Metadata(ctx, key)) }},
		{"Versions", func(ctx context.Context) error { return errorOf(p.Versions(ctx, key)) }},
		{"Current", func(ctx context.Context) error { return errorOf(p.Current(ctx, key)) }},
		{"Version", func(ctx context.Context) error { return errorOf(p.Version(ctx, version)) }},
		{"Create", func(ctx context.Context) error { return errorOf(p.Create(ctx, spec(key+"-new", 128))) }},
		{"Roll", func(ctx context.Context) error { return errorOf(p.Roll(ctx, key, nil)) }},
		{"Delete", func(ctx context.Context) error { return p.Delete(ctx, key) }},
	}
	if enc, ok := p.(provider.BlockEncrypter); ok {
		list = append(list, call{"EncryptBlocks", func(ctx context.Context) error {
			return enc.EncryptBlocks(ctx, version, make([]byte, 16))
		}})
	}
	if leaser, ok := p.(provider.Leaser); ok {
		list = append(list, call{"Lease", func(ctx context.Context) error {
			return leaser.Lease(ctx, version, time.Minute)
		}})
	}
	if service, ok := p.(provider.EDEKService); ok {
		list = append(list,
			call{"Generate", func(ctx context.Context) error { return errorOf(service.Generate(ctx, key, 1)) }},
			call{"Unwrap", func(ctx context.Context) error {
				return errorOf(service.Unwrap(ctx, key, "", []claviger.EDEK{e}))
			}},
			call{"Reencrypt", func(ctx context.Context) error {
				return errorOf(service.Reencrypt(ctx, key, []claviger.EDEK{e}))
			}})
	}
	if imp, ok := p.(provider.Importer); ok {
		m := claviger.Metadata{Name: key + "-imported", Cipher: claviger.DefaultCipher, BitLength: 128}
		list = append(list, call{"Import", func(ctx context.Context) error {
			return errorOf(imp.Import(ctx, m, 1, 0, nil))
		}})
	}
	if h, ok := p.(provider.Health); ok {
		list = append(list, call{"Check", h.Check})
	}
	return list
}

// errorOf drops a call's result and returns its error.
func errorOf[T any](_ T, err error) error { return err }

func testLife(t *testing.T, s Suite) {
	t.Run("Cancelled", func(t *testing.T) { testCancelled(t, s.open(t)) })
	t.Run("Closed", func(t *testing.T) { testClosed(t, s.New(t)) })
	t.Run("CloseUnderLoad", func(t *testing.T) { testCloseUnderLoad(t, s.New(t)) })
}

func testCancelled(t *testing.T, p provider.Provider) {
	name := keyName("cancelled")
	v := create(t, p, spec(name, 128))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range calls(p, name, v.Name) {
		wantCancelled(t, c.name, c.f(ctx))
	}
	if list := versions(t, p, name); len(list) != 1 || !sameVersion(list[0], v) {
		t.Errorf("a call with a cancelled context changed the key: %q", names(list))
	}
	for _, n := range []string{name + "-new", name + "-imported"} {
		if m := metadata(t, p, n); m != nil {
			t.Errorf("a call with a cancelled context made %q", n)
		}
	}
}

// testClosed closes p.
func testClosed(t *testing.T, p provider.Provider) {
	name := keyName("closed")
	v := create(t, p, spec(name, 128))
	all := calls(p, name, v.Name)
	if err := p.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	for _, c := range all {
		wantKind(t, c.name+" after Close", c.f(t.Context()), claviger.Closed)
	}
	if err := p.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if p.URI() == "" {
		t.Error("URI is empty after Close")
	}
}

// testCloseUnderLoad closes p while readers call it. Each reader must get an error of kind Closed, and neither crash
// nor hang.
func testCloseUnderLoad(t *testing.T, p provider.Provider) {
	name := keyName("closing")
	v := create(t, p, spec(name, 128))
	var wg sync.WaitGroup
	begun := make(chan struct{}, 4)
	for range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				if _, err := p.Version(t.Context(), v.Name); err != nil {
					wantKind(t, "Version during Close", err, claviger.Closed)
					return
				}
				if i == 3 {
					begun <- struct{}{}
				}
			}
		})
	}
	for range 4 {
		<-begun
	}
	if err := p.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	wg.Wait()
}

func testHealth(t *testing.T, s Suite) {
	p := s.open(t)
	if err := p.(provider.Health).Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
}

func testReopen(t *testing.T, s Suite) {
	p := s.New(t)
	name, gone := keyName("reopen"), keyName("reopen-gone")
	sp := spec(name, 256)
	sp.Description, sp.Attributes = ptr("a\nb"), map[string]string{"x": "y"}
	create(t, p, sp)
	roll(t, p, name)
	create(t, p, spec(gone, 128))
	if err := p.Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	before, list := metadata(t, p, name), versions(t, p, name)
	oldUse := useOf(t, p, name, list[0].Name)(t)

	p = s.Reopen(t, p)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	m := metadata(t, p, name)
	if m == nil || m.Cipher != before.Cipher || m.BitLength != 256 || m.Versions != 2 ||
		quoted(m.Description) != quoted(sp.Description) ||
		!sameAttributes(m.Attributes, sp.Attributes) || !m.Created.Equal(before.Created) {
		t.Errorf("metadata %+v, before %+v", m, before)
	}
	again := versions(t, p, name)
	if !slices.EqualFunc(list, again, sameVersion) {
		t.Errorf("versions %q, before %q", names(again), names(list))
	}
	if !useOf(t, p, name, list[0].Name)(t).Equal(oldUse) {
		t.Error("the version has another key after the restart")
	}
	if m := metadata(t, p, gone); m != nil {
		t.Errorf("a deleted key came back: %+v", m)
	}
	v := roll(t, p, name)
	if list := versions(t, p, name); len(list) != 3 || list[2].Name != v.Name {
		t.Errorf("versions after another roll: %q", names(list))
	}
}
