package hsm_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/provider"
	"claviger/provider/hsm"
)

// insertFails is a store that is killed when a key is inserted.
type insertFails struct{ metastore.Store }

func (insertFails) Insert(context.Context, metastore.Key) error { return errKilled }

func (insertFails) FinishCreate(context.Context, metastore.Intent, metastore.Key) error {
	return errKilled
}

// stepsOf returns a creation and a migration of key k with the given text, attributes and time of creation.
func stepsOf(t *testing.T, text string, attributes map[string]string,
	made time.Time) map[string]func(*hsm.Provider) error {
	return map[string]func(p *hsm.Provider) error{
		"create": func(p *hsm.Provider) error {
			_, err := p.Create(t.Context(), provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128,
				Description: &text, Attributes: attributes})
			return err
		},
		"import": func(p *hsm.Provider) error {
			_, err := p.Import(t.Context(), claviger.Metadata{Name: "k", Cipher: claviger.DefaultCipher,
				BitLength: 128, Description: &text, Attributes: attributes, Created: made}, 2, 0, nil)
			return err
		},
	}
}

// TestAdoptStep: versions of an interrupted creation or migration are adopted with the attributes, description and
// creation time that the step asked for, and so under the rules that these name. That holds too if the adoption is
// killed and repeated.
func TestAdoptStep(t *testing.T) {
	text, made := "finance's", time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	attributes := map[string]string{claviger.ACLNameAttribute: "finance", "owner": "x"}
	for op, step := range stepsOf(t, text, attributes, made) {
		b := newSite(t)
		b.around = func(s metastore.Store) metastore.Store { return insertFails{s} }
		p := b.mustOpen(t)
		began := time.Now().Truncate(time.Millisecond)
		if err := step(p); !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		mustClose(t, p)
		b.access = hsm.Repair
		p = b.mustOpen(t) // the adoption is killed too
		list, err := p.Candidates(t.Context())
		if err != nil || len(list) != 1 || list[0].Step == nil || list[0].Step.Op != op ||
			!maps.Equal(list[0].Step.Attributes, attributes) {
			t.Fatalf("%s: %+v, %v", op, list, err)
		}
		if err := p.Adopt(t.Context(), list[0], hsm.Adoption{}); !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		mustClose(t, p)
		b.around = nil
		b.adoptAll(t, hsm.Adoption{})
		p = b.mustOpen(t)
		m, err := p.Metadata(t.Context(), "k")
		if err != nil || m[0] == nil || !maps.Equal(m[0].Attributes, attributes) || m[0].Description == nil ||
			*m[0].Description != text {
			t.Fatalf("%s: %+v, %v", op, m, err)
		}
		if at := m[0].Created; op == "import" && !at.Equal(made) || op == "create" &&
			(at.Before(began) || time.Since(at) > time.Minute) {
			t.Errorf("%s: created at %v", op, at)
		}
		mustClose(t, p)
	}
}

// TestAdoptStepOfOldCopy: a step that made some of a key's versions says nothing about the others. An old copy of the
// store has a step whose object was set aside later; then another user made the key, under other rules.
func TestAdoptStepOfOldCopy(t *testing.T) {
	b := newSite(t)
	b.create(t, "other")
	b.around = func(s metastore.Store) metastore.Store { return insertFails{s} }
	p := b.mustOpen(t)
	if err := stepsOf(t, "", nil, time.Now())["create"](p); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	mustClose(t, p)
	b.closeStores(t)
	copied, err := os.ReadFile(b.db)
	if err != nil {
		t.Fatal(err)
	}
	b.around, b.access = nil, hsm.Repair
	p = b.mustOpen(t)
	list, err := p.Candidates(t.Context())
	if err == nil && len(list) == 1 {
		err = p.SetAside(t.Context(), list[0], hsm.Adoption{})
	}
	if err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	mustClose(t, p)
	b.access = hsm.Serve
	b.create(t, "k")
	b.closeStores(t)
	b.putUnnoticed(t, copied)
	b.access = hsm.Repair
	p = b.mustOpen(t)
	list, err = p.Candidates(t.Context())
	if err != nil || len(list) != 1 || len(list[0].Versions) != 2 || list[0].Step != nil {
		t.Errorf("a step that made one of two: %+v, %v", list, err)
	}
	mustClose(t, p)
}
