package server

import (
	"fmt"
	"sync"
	"time"

	"claviger/trustee"
)

// Limits of the server, for tests.
const (
	BodyTime        = bodyTime
	GuessBurst      = guessBurst
	MaxUUIDs        = maxUUIDs
	SweepStoreEvery = sweepStoreEvery
)

// Identity returns one of three identities: 0 is that of the server, 1 and 2 are those of clients. Each is made once,
// because RSA keys take time.
func Identity(i int) *trustee.Identity { return testIdentities[i]() }

var testIdentities = [...]func() *trustee.Identity{newTestIdentity(0), newTestIdentity(1), newTestIdentity(2)}

func newTestIdentity(i int) func() *trustee.Identity {
	return sync.OnceValue(func() *trustee.Identity {
		id, err := trustee.NewIdentity("keytrustee", "", fmt.Sprintf("kms@h%d.example.com", i), 2048,
			time.Now().Add(-time.Hour))
		if err != nil {
			panic(err)
		}
		return id
	})
}
