package pkcs11

import (
	"errors"
	"reflect"
	"sync/atomic"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"
)

// callByName calls a method of a Boundary with zero arguments, and returns its error.
func callByName(b Boundary, name string) error {
	method := reflect.ValueOf(b).MethodByName(name)
	var in []reflect.Value
	for i := range method.Type().NumIn() {
		in = append(in, reflect.Zero(method.Type().In(i)))
	}
	call := method.Call
	if method.Type().IsVariadic() {
		call = method.CallSlice
	}
	out := call(in)
	err, _ := out[len(out)-1].Interface().(error)
	return err
}

func boundaryMethods() (names []string) {
	of := reflect.TypeFor[Boundary]()
	for i := range of.NumMethod() {
		names = append(names, of.Method(i).Name)
	}
	return names
}

// TestMeter: a Meter counts each method. A failure that was ordered does not reach the Boundary behind the Meter; an
// error of that Boundary reaches the caller.
func TestMeter(t *testing.T) {
	ordered, behind := errors.New("ordered"), errors.New("of the boundary behind")
	for _, name := range boundaryMethods() {
		inner, outer := new(Meter), new(Meter)
		b := outer.Wrap(inner.Wrap(nil))
		outer.Fail(name, 1, ordered)
		inner.Fail(name, 1, behind)
		if err := callByName(b, name); !errors.Is(err, ordered) || inner.Count(name) != 0 {
			t.Errorf("%s: %v, and %d calls behind", name, err, inner.Count(name))
		}
		if err := callByName(b, name); !errors.Is(err, behind) || inner.Count(name) != 1 {
			t.Errorf("%s: %v, and %d calls behind", name, err, inner.Count(name))
		}
		if outer.Count(name) != 2 || len(outer.Counts()) != 1 {
			t.Errorf("%s: the counts are %v", name, outer.Counts())
		}
		outer.Reset()
		if outer.Count(name) != 0 {
			t.Errorf("%s: the count is %d after Reset", name, outer.Count(name))
		}
	}
}

// TestMeterHang: a call hangs until its release, and an earlier release does not release it.
func TestMeterHang(t *testing.T) {
	m := new(Meter)
	b := m.Wrap(new(Meter).Wrap(nil))
	first := m.Hang("Finalize")
	first()
	failed := errors.New("failed")
	m.Fail("Finalize", 2, failed)
	if err := b.Finalize(); !errors.Is(err, failed) { // hangs if the release releases nothing
		t.Error(err)
	}
	second := m.Hang("Finalize")
	first()
	returned := make(chan error, 1)
	go func() { returned <- b.Finalize() }()
	select {
	case err := <-returned:
		t.Errorf("the call did not hang: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	second()
	second()
	if err := <-returned; !errors.Is(err, failed) {
		t.Error(err)
	}
}

// TestMeterHeal: Heal cancels the ordered failures.
func TestMeterHeal(t *testing.T) {
	behind, failed, other := new(Meter), errors.New("failed"), errors.New("of the boundary behind")
	m := new(Meter)
	b := m.Wrap(behind.Wrap(nil))
	m.Fail("Finalize", 3, failed)
	behind.Fail("Finalize", 1, other)
	if err := b.Finalize(); !errors.Is(err, failed) {
		t.Error(err)
	}
	m.Heal()
	if err := b.Finalize(); !errors.Is(err, other) {
		t.Errorf("after Heal: %v", err)
	}
}

// unreported are the functions that a library answers without the HSM.
var unreported = map[string]bool{
	"Finalize": true, "GetSlotList": true, "GetTokenInfo": true, "GetMechanismList": true, "CloseSession": true,
	"GetSessionInfo": true, "FindObjectsFinal": true,
}

// TestEachFunctionIsReported: OnFunction gets each function that may go to the HSM, by its name and its result, and the
// caller gets the error of the library.
func TestEachFunctionIsReported(t *testing.T) {
	for _, name := range boundaryMethods() {
		var got []Function
		report := new(atomic.Pointer[func(Function)])
		m := new(Meter)
		b := traced{m.Wrap(nil), report}
		m.Fail(name, 2, p11.Error(p11.CKR_DEVICE_ERROR))
		if err := callByName(b, name); !errors.Is(err, p11.Error(p11.CKR_DEVICE_ERROR)) { // no function is set
			t.Errorf("%s: %v", name, err)
		}
		f := func(f Function) { got = append(got, f) }
		report.Store(&f)
		if err := callByName(b, name); !errors.Is(err, p11.Error(p11.CKR_DEVICE_ERROR)) {
			t.Errorf("%s: %v", name, err)
		}
		if unreported[name] {
			if len(got) != 0 {
				t.Errorf("%s: reported %v", name, got)
			}
			continue
		}
		if len(got) != 1 || got[0].Name != "C_"+name || got[0].Result != "CKR_DEVICE_ERROR" || got[0].Took < 0 {
			t.Errorf("%s: reported %v", name, got)
		}
	}
}
