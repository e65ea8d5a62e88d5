package kms

import (
	"os"
	"testing"

	"claviger/internal/pgtest"
	"claviger/pkcs11/worker"
)

// TestMain ends the PostgreSQL server that tests share.
func TestMain(m *testing.M) {
	worker.Main(os.Args)
	os.Exit(pgtest.Main(m.Run))
}
