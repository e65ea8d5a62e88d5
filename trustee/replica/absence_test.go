package replica_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/replica"
)

// lookUp requests a label from one server, and returns found, not found, or unsure.
func (h *pairServer) lookUp(label string) string {
	h.t.Helper()
	c := h.client(identities()[1])
	_, err := c.Find(h.t.Context(), label)
	_, lerr := c.List(h.t.Context(), "", false, "", 10)
	switch {
	case err == nil:
		return "found"
	case claviger.Is(err, claviger.KeyNotFound) && lerr == nil:
		return "not found"
	case errors.Is(err, trustee.ErrUnsure) && errors.Is(lerr, trustee.ErrUnsure),
		strings.Contains(err.Error(), "ask that one") && lerr != nil:
		return "unsure"
	}
	return fmt.Sprint(err, " / ", lerr)
}

// TestAbsence: a server says that a deposit does not exist only if it knows that the other server does not hold it
// either, or if an operator lets it work alone.
func TestAbsence(t *testing.T) {
	a, b, client := startedPair(t)
	want := func(when string, h *pairServer, label, how string) {
		t.Helper()
		if got := h.lookUp(label); got != how {
			t.Errorf("%s: %s of %q, want %s", when, got, label, how)
		}
	}
	must(t, put(t, client, "both", "x"))
	a.await("both servers being synchronized", synchronized)
	for _, h := range []*pairServer{a, b} {
		want("synchronized", h, "late", "not found")
	}
	a.stop()
	if _, err := b.client(identities()[1]).List(t.Context(), "", false, "", 10); err != nil {
		t.Errorf("a list of a passive server that lacked nothing: %v", err)
	}
	a.start()
	a.await("both servers being synchronized", synchronized)
	b.stop()
	want("the active, since the passive is away", a, "late", "not found")
	a.stop()
	a.start()
	want("an active that has not seen the passive", a, "late", "unsure")
	want("an active that has not seen the passive", a, "both", "found")
	must(t, a.operatorRequest(trustee.VerbAlone, replica.AloneArgs{On: true}))
	want("an active server that works alone", a, "never", "not found")
	must(t, put(t, a.client(identities()[1]), "late", "y"))
	a.stop()
	b.start()
	want("a passive that has not seen the active", b, "late", "unsure")
	want("a passive that has not seen the active", b, "both", "found")
	must(t, b.operatorRequest(trustee.VerbPromote, replica.PromoteArgs{Force: true}))
	want("a passive promoted by force", b, "late", "unsure")
	must(t, b.operatorRequest(trustee.VerbAlone, replica.AloneArgs{On: true}))
	want("a server that an operator lets work alone", b, "late", "not found")
	must(t, put(t, b.client(identities()[1]), "of B", "z"))
	a.start()
	b.await("the warning", func(r replica.StatusReport) bool { return strings.Contains(r.Why, `deposit "late"`) })
	want("an active that knows that the passive holds more", b, "late", "unsure")
	want("the passive that holds it", a, "late", "found")
	want("the passive that lacks something", a, "of B", "unsure")
	if d, err := b.client(identities()[1], a.web.URL).Find(t.Context(), "late"); err != nil ||
		string(d.Content) != "y" {
		t.Errorf("from both servers: %+v, %v", d, err)
	}
	must(t, b.operatorRequest(trustee.VerbResync, replica.ResyncArgs{Drop: true}))
	b.await("both servers being synchronized", synchronized)
	for _, h := range []*pairServer{a, b} {
		h.await("a sure answer", func(replica.StatusReport) bool { return h.lookUp("late") == "not found" })
	}
}
