package pkcs11

import (
	"bytes"
	"context"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/softhsm/softhsmtest"
)

// TestData: a data object is found by its application, replaced by its label, and still there after the next login.
// Keys are not listed as data objects.
func TestData(t *testing.T) {
	tok, m := open(t)
	ctx := t.Context()
	data := func(want ...Data) {
		t.Helper()
		got, err := tok.ListData(ctx, "claviger")
		if err != nil || len(got) != len(want) {
			t.Fatalf("%d objects, %v; want %d", len(got), err, len(want))
		}
		for i := range want {
			if got[i].Application != "claviger" || got[i].Label != want[i].Label ||
				!bytes.Equal(got[i].Value, want[i].Value) {
				t.Errorf("object %d is %+v, want %+v", i, got[i], want[i])
			}
		}
	}
	data()
	one := Data{"claviger", "store a", []byte(`{"store":"a"}`)}
	if err := tok.PutData(ctx, one); err != nil {
		t.Fatal(err)
	}
	if err := tok.PutData(ctx, Data{"somebody", "store a", []byte("x")}); err != nil {
		t.Fatal(err)
	}
	generate(t, tok, 1, 256)
	data(one)
	one.Value = []byte("replaced")
	if err := tok.PutData(ctx, one); err != nil {
		t.Fatal(err)
	}
	data(one)
	if keys, err := tok.List(ctx); err != nil || len(keys) != 1 {
		t.Errorf("%d keys, %v", len(keys), err)
	}

	// The new object exists before the old one is destroyed.
	m.Fail("DestroyObject", 2, p11.Error(p11.CKR_DEVICE_ERROR))
	if err := tok.PutData(ctx, Data{"claviger", "store a", []byte("third")}); err == nil {
		t.Error("the old object could not be destroyed, and there is no error")
	}
	m.Heal()
	got, err := tok.ListData(ctx, "claviger")
	if err != nil || len(got) == 0 {
		t.Errorf("after an interrupted replacement: %d objects, %v; want one or two", len(got), err)
	}
	for range 2 { // the second time there is no object, and that is no error
		if err := tok.DestroyData(ctx, "claviger", "store a"); err != nil {
			t.Error(err)
		}
	}
	data()
	if err := tok.PutData(ctx, Data{"claviger", "long", make([]byte, MaxData+1)}); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("too long: %v", err)
	}
}

// TestDataRefused: the error for a token that keeps no data objects differs from that for a token that does not answer.
// A token that keeps only public data objects gets a public one.
func TestDataRefused(t *testing.T) {
	tok, m := open(t)
	put := func() error { return tok.PutData(t.Context(), Data{"claviger", "l", []byte("v")}) }
	m.Fail("CreateObject", 2, p11.Error(p11.CKR_ATTRIBUTE_VALUE_INVALID))
	if err := put(); !claviger.Is(err, claviger.Unsupported) {
		t.Errorf("refused: %v", err)
	}
	m.Fail("CreateObject", 1, p11.Error(p11.CKR_TEMPLATE_INCONSISTENT))
	if err := put(); err != nil {
		t.Errorf("public objects alone: %v", err)
	}
	m.Fail("FindObjectsInit", 1, p11.Error(p11.CKR_ATTRIBUTE_TYPE_INVALID))
	if _, err := tok.ListData(t.Context(), "claviger"); !claviger.Is(err, claviger.Unsupported) {
		t.Errorf("refused at the search: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tok.ListData(ctx, "claviger"); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("the token was not called: %v", err)
	}
}

// TestDataOnAFullDisk: SoftHSM returns CKR_OK for an object although its disk is full. The old object stays, and is
// replaced once there is room.
func TestDataOnAFullDisk(t *testing.T) {
	token, fill, free := softhsmtest.Small(t)
	tok, m := openAs(t, config(token))
	shown := func(want string) {
		t.Helper()
		list, err := tok.ListData(t.Context(), "claviger")
		if err != nil || len(list) != 1 || string(list[0].Value) != want {
			t.Errorf("%+v, %v; want %s", list, err, want)
		}
	}
	d := Data{"claviger", "store a", []byte("first")}
	fill()
	if err := tok.PutData(t.Context(), d); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("without one before: %v", err)
	}
	free()
	if err := tok.PutData(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	d.Value = []byte("second")
	fill()
	m.Reset()
	err := tok.PutData(t.Context(), d)
	if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), `"store a"`) ||
		!strings.Contains(err.Error(), "is full") {
		t.Errorf("%v", err)
	}
	if m.Count("CreateObject") != 1 {
		t.Errorf("SoftHSM got the calls %v", m.Counts())
	}
	shown("first")
	again, _ := openAs(t, config(token))
	if list, err := again.ListData(t.Context(), "claviger"); err != nil || len(list) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	free()
	if err := tok.PutData(t.Context(), d); err != nil {
		t.Error(err)
	}
	shown("second")
}
