package recovery

import (
	"os"
	"testing"

	"claviger/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m.Run)) }
