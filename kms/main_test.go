package kms

import (
	"os"
	"testing"

	"claviger/internal/pgtest"
)

// TestMain ends the PostgreSQL server that tests share.
func TestMain(m *testing.M) { os.Exit(pgtest.Main(m.Run)) }
