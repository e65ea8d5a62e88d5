package kmsapi

import (
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// TestNamesOfLongRequests: a name that is remembered does not keep in memory the long request that it was a part of.
func TestNamesOfLongRequests(t *testing.T) {
	heap := func() int {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc) //nolint:gosec // far below the limit
	}
	const requests, length = 100, 60 << 10
	names, versions := make([]string, requests), make([]string, requests)
	before := heap()
	for i := range requests {
		path := base + "/v1/keyversion/k@" + strconv.Itoa(i)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, path+"?"+strings.Repeat("x", length), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.RequestURI = path + "?" + strings.Repeat("x", length)
		c := call{r: r}
		pattern, name, ok := match(r.RequestURI[:len(path)])
		if !ok || !c.readName(pattern, name) || c.name != "k@"+strconv.Itoa(i) {
			t.Fatalf("%s has the name %q", path, c.name)
		}
		names[i], versions[i] = c.name, c.version.Key
	}
	if grown := heap() - before; grown > requests*length/10 {
		t.Errorf("%d names in paths of %d bytes have %d bytes", requests, length, grown)
	}
	runtime.KeepAlive(names)
	runtime.KeepAlive(versions)
}
