package hsm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"claviger/pkcs11"
)

// standbyInspectLimit is how long an inspection waits for the standby.
const standbyInspectLimit = 30 * time.Second

// Inspection is the report of Inspect. claviger hsm inspect prints it as JSON.
type Inspection struct {
	Keys      map[Mark]int       `json:"keys"`
	Token     pkcs11.TokenInfo   `json:"token"`
	Unguarded int                `json:"unguarded"`         // keys of claviger that could leave the token
	Standby   *StandbyInspection `json:"standby,omitempty"` // nil: the configuration names none
}

// StandbyInspection is the result of an inspection of the standby token.
type StandbyInspection struct {
	Token *pkcs11.TokenInfo `json:"token,omitempty"` // nil: it could not be opened
	// Problem says why the standby cannot be used; "" if it can. Then the lists were made.
	Problem string `json:"problem,omitempty"`
	// Missing has the key versions of which the standby has no copy, and NotDestroyed the destroyed versions of which
	// it still has a copy.
	Missing      []string `json:"missing"`
	NotDestroyed []string `json:"left"`
}

// InspectToken inspects the token and the standby.
func (p *Provider) InspectToken(ctx context.Context) (*Inspection, error) {
	objects, err := p.Objects(ctx)
	if err != nil {
		return nil, err
	}
	found := &Inspection{Keys: map[Mark]int{}, Token: p.Info()}
	for _, o := range objects {
		found.Keys[o.Mark]++
		if o.Unguarded() {
			found.Unguarded++
		}
	}
	found.Standby = p.InspectStandby(ctx)
	return found, nil
}

// InspectStandby opens the standby, and compares it with the store. It returns nil if the configuration names none.
func (p *Provider) InspectStandby(ctx context.Context) *StandbyInspection {
	s := p.namedStandby
	if s == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, standbyInspectLimit)
	defer cancel()
	found := &StandbyInspection{Missing: []string{}, NotDestroyed: []string{}}
	tok, err := pkcs11.Open(ctx, s.tok.cfg)
	if err == nil {
		info := tok.Info()
		found.Token = &info
		var c comparison
		if err = s.mayBeUsed(ctx, p, tok); err == nil {
			c, err = compareStandby(ctx, tok, p.store)
		}
		found.Missing = append(found.Missing, c.missing...)
		found.NotDestroyed = append(found.NotDestroyed, c.notDestroyed...)
		slices.Sort(found.Missing)
		slices.Sort(found.NotDestroyed)
		err = errors.Join(err, tok.Close())
	}
	if err != nil {
		found.Problem = err.Error()
	}
	return found
}

// Refusal returns an error if something is wrong with the tokens: keys that could leave the token, or a standby that is
// no full copy.
func (i *Inspection) Refusal() error {
	if i.Unguarded > 0 {
		return fmt.Errorf("%d keys could leave the token: roll their EZ keys, and find out who changed them",
			i.Unguarded)
	}
	s := i.Standby
	switch {
	case s == nil:
		return nil
	case s.Problem != "":
		return fmt.Errorf("the standby token cannot be used: %s", s.Problem)
	}
	if texts := s.Differences(); len(texts) > 0 {
		return errors.New(texts[0])
	}
	return nil
}

// Differences says what an operator must do so that the standby has a copy of each key, and of no other.
func (s *StandbyInspection) Differences() []string {
	return comparison{s.Missing, s.NotDestroyed}.texts()
}

// Text writes the report as a table.
func (i *Inspection) Text(w io.Writer) {
	tokenText(w, "", &i.Token)
	for _, m := range Marks() {
		fmt.Fprintf(w, "keys %s\t%d\n", m, i.Keys[m])
	}
	fmt.Fprintf(w, "keys of claviger that are not sensitive, or extractable\t%d\n", i.Unguarded)
	s := i.Standby
	if s == nil {
		return
	}
	if s.Token != nil {
		tokenText(w, "standby ", s.Token)
	}
	if s.Problem != "" {
		fmt.Fprintf(w, "standby cannot be used\t%s\n", s.Problem)
		return
	}
	fmt.Fprintf(w, "standby lacks copies\t%s\nstandby has copies of destroyed keys\t%s\n", counted(s.Missing),
		counted(s.NotDestroyed))
}

// counted returns the number of versions, and the names of some of them.
func counted(versions []string) string {
	if len(versions) == 0 {
		return "0"
	}
	return fmt.Sprintf("%d: %s", len(versions), summarize(versions))
}

// tokenText writes a token and how claviger uses it. prefix begins each line.
func tokenText(w io.Writer, prefix string, t *pkcs11.TokenInfo) {
	for _, line := range []struct{ name, value string }{
		{"token", t.Label}, {"serial", t.Serial}, {"slot", fmt.Sprint(t.Slot)},
		{"maker", fmt.Sprintf("%s %s, firmware %s", t.Manufacturer, t.Model, t.Firmware)},
		{"profile", string(t.Profile)}, {"mechanism", t.Mechanism},
		{"sessions", fmt.Sprintf("up to %d", t.MaxSessions)}, {"one call", fmt.Sprintf("up to %d bytes", t.MaxData)},
	} {
		fmt.Fprintf(w, "%s%s\t%s\n", prefix, line.name, line.value)
	}
}
