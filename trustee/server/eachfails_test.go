package server_test

import (
	"errors"
	"strings"
	"testing"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/server"
)

var errInjected = errors.New("injected fault")

// TestEachCallFails fails each call that a request makes to the store, the Key HSM and the replica. The answer is an
// error of kind Unavailable, and only the log has its text. The request makes no further call, and changes nothing.
func TestEachCallFails(t *testing.T) {
	b, id := newTracedServer(t), server.Identity(1)
	deposit, uuid := sealed(t, id, trustee.Deposit{Label: "l", Content: []byte("x")})
	uuids := trustee.UUIDArgs{UUIDs: []string{uuid}}
	for _, op := range []struct {
		verb  string
		args  any
		calls string // of a request without a fault
	}{
		{trustee.VerbRegister, trustee.RegisterArgs{PublicKey: public(t, id), Org: "ORG", Auth: "s3cret", Alone: true},
			"Current Ready Org Clients AddClient"},
		{trustee.VerbPut, trustee.PutArgs{Deposit: deposit}, "Current Client Ready Client Wrap Put"},
		{trustee.VerbGet, trustee.GetArgs{UUID: uuid}, "Current Client Get Client Unwrap"},
		{trustee.VerbFind, trustee.FindArgs{Label: "l"}, "Current Client Find Unwrap"},
		{trustee.VerbList, trustee.ListArgs{Limit: 1}, "Current Client List"},
		{trustee.VerbClients, struct{}{}, "Current Client Client Clients"},
		{trustee.VerbDelete, uuids, "Current Client Ready Delete"},
		{trustee.VerbUndelete, uuids, "Current Client Ready Undelete"},
		{trustee.VerbDelete, uuids, "Current Client Ready Delete"},
		{trustee.VerbPurge, uuids, "Current Client Ready Purge"},
	} {
		for fail := 1; ; fail++ {
			var calls []string
			failed := ""
			b.before = func(method string) error {
				if method == "Forget" { // see TestSweep
					return nil
				}
				if calls = append(calls, method); len(calls) != fail {
					return nil
				}
				failed = method
				return claviger.E("test", claviger.Unavailable, "", errInjected)
			}
			b.log.Reset()
			before := b.digest()
			got := b.send(id, op.verb, op.args, nil)
			if failed == "" {
				if all := strings.Join(calls, " "); got.err != nil || all != op.calls {
					t.Errorf("%s without a fault: %v; it calls %s", op.verb, got.err, all)
				}
				break
			}
			if !claviger.Is(got.err, claviger.Unavailable) || strings.Contains(got.err.Error(), errInjected.Error()) ||
				got.text != "" && got.text != "the server's store does not answer\n" {
				t.Errorf("%s without %s: %+v", op.verb, failed, got)
			}
			if !strings.Contains(b.log.String(), errInjected.Error()) {
				t.Errorf("%s without %s: the log has %s", op.verb, failed, b.log.String())
			}
			if len(calls) > fail || b.digest() != before {
				t.Errorf("%s goes on without %s: %s", op.verb, failed, calls)
			}
		}
	}
	b.before = func(string) error { return errInjected }
	if _, err := server.StateDigest(t.Context(), &seenStore{b.store, b}); !errors.Is(err, errInjected) {
		t.Errorf("a digest without Export: %v", err)
	}
}

// TestSweep: the server removes expired records every ten minutes. If it cannot, it logs a warning, and answers the
// request. A passive server, which makes no changes, logs no warning.
func TestSweep(t *testing.T) {
	b, id := newTracedServer(t), server.Identity(1)
	b.add(id, "ORG")
	fault, sweeps := error(nil), 0
	b.before = func(method string) error {
		if method != "Forget" {
			return nil
		}
		sweeps++
		return fault
	}
	for _, tt := range []struct {
		fault  error
		sweeps int
		warns  bool
	}{
		{nil, 1, false},
		{claviger.E("test", claviger.Unavailable, "", errInjected), 2, true},
		{claviger.E("test", claviger.Unavailable, "", trustee.ErrPassive), 3, false},
	} {
		fault = tt.fault
		b.log.Reset()
		for range 2 {
			if got := b.send(id, trustee.VerbClients, struct{}{}, nil); got.err != nil || sweeps != tt.sweeps {
				t.Errorf("%v: %v after %d sweeps", tt.fault, got.err, sweeps)
			}
		}
		if warns := strings.Contains(b.log.String(), "expired records could not be removed"); warns != tt.warns ||
			sweeps != tt.sweeps {
			t.Errorf("%v: %d sweeps, and the log has %s", tt.fault, sweeps, b.log.String())
		}
		b.now = b.now.Add(server.SweepStoreEvery)
	}
}
