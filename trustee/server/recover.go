package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"claviger"
	"claviger/trustee"
)

// Recovered is what Recover has found and done.
type Recovered struct {
	// Lacked is what the store lacked, or held in another state.
	Lacked Loss
	// Added is what it has got.
	Added Loss
	// Left says for people why something of Lacked was not added.
	Left []string
}

// Recover adds to a store what it lacks of another, which kept what was dropped. It
// changes nothing that the store holds: a deposit whose label has another live deposit
// by now is left, and so is what both hold in different states. With dry it only looks.
func Recover(ctx context.Context, into, from Store, dry bool) (*Recovered, error) {
	now := time.Now()
	mine := holdings{}
	if err := into.Export(ctx, func(rec Record) error { return mine.add(rec, now) }); err != nil {
		return nil, err
	}
	res := new(Recovered)
	err := from.Export(ctx, func(rec Record) error {
		var one Loss
		if err := mine.lacks(rec, now, &one); err != nil || one.None() {
			return err
		}
		name := one.Names[0]
		res.Lacked.count(rec, name)
		key, _, _, _, err := holding(rec, now)
		if err != nil {
			return err
		}
		if _, there := mine[key]; there {
			res.Left = append(res.Left, name+": the store holds it in another state (deleted or not, disabled or not, another secret)")
			return nil
		}
		if dry {
			return nil
		}
		err = addRecord(ctx, into, rec)
		switch {
		case claviger.Is(err, claviger.KeyExists):
			res.Left = append(res.Left, name+": the store has another of that name by now")
		case claviger.Is(err, claviger.Denied), claviger.Is(err, claviger.Invalid):
			res.Left = append(res.Left, fmt.Sprintf("%s: %v", name, err))
		case err != nil:
			return err
		default:
			res.Added.count(rec, name)
		}
		return nil
	})
	return res, err
}

// addRecord adds an organization, a client or a deposit.
func addRecord(ctx context.Context, into Store, rec Record) error {
	switch {
	case rec.Org != nil:
		return into.AddOrg(ctx, *rec.Org)
	case rec.Client != nil:
		_, err := into.AddClient(ctx, *rec.Client, Once{})
		return err
	case rec.Deposit != nil:
		at := rec.Deposit.Sealed.Deleted
		if err := into.Put(ctx, *rec.Deposit, "", Once{}); err != nil || at == nil {
			return err
		}
		return into.Delete(ctx, rec.Deposit.Owner, []string{rec.Deposit.UUID}, *at, Once{})
	}
	return nil
}

// IsPassive tells whether an error says that changes are made at the other server.
func IsPassive(err error) bool { return errors.Is(err, trustee.ErrPassive) }
