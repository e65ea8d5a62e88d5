package kmsapi

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"claviger"
	"claviger/kmswire"
)

// Slow bounds how slowly a client may send a body or read an answer.
type Slow struct {
	Grace time.Duration // without a word about the rate
	Rate  int64         // bytes a second, after that
}

// DefaultSlow is that of Limits without one.
var DefaultSlow = Slow{Grace: 10 * time.Second, Rate: 256 << 10}

// blocksOfEDEK is how many blocks of the HSM's the longest usual EDEK takes: a DEK of 256
// bits. A batch of longer ones weighs more.
const blocksOfEDEK = 2

const (
	// defaultMaterial is the longest material of an EDEK, in bytes. DEKs of HDFS have 16 to
	// 32; the HSM works on each 16 bytes.
	defaultMaterial   = 1024
	defaultNames      = 1000 // a stock client asks for as many as 1,500 bytes of URL hold
	defaultParameters = 1024
)

func (l *Limits) defaults() {
	if l.MaxNames <= 0 {
		l.MaxNames = defaultNames
	}
	if l.MaxMaterial <= 0 {
		l.MaxMaterial = defaultMaterial
	}
	if l.MaxParameters <= 0 {
		l.MaxParameters = defaultParameters
	}
	if l.Slow.Grace <= 0 || l.Slow.Rate <= 0 {
		l.Slow = DefaultSlow
	}
}

// allowed is how long so many bytes may take.
func (s Slow) allowed(bytes int64) time.Duration {
	return s.Grace + time.Duration(float64(bytes)/float64(s.Rate)*float64(time.Second))
}

// reading returns what is to be called before each read of the body, with the bytes
// that have come; -1 is the end. A rate gives no more time than the web server does.
// Where a connection has no deadline, the web server's own counts.
func (c *call) reading() func(got int) {
	control, began := http.NewResponseController(c.w), time.Now()
	most := c.server().ReadTimeout
	return func(got int) {
		if got < 0 {
			_ = control.SetReadDeadline(time.Time{}) // else it would end the work on the request
			return
		}
		_ = control.SetReadDeadline(began.Add(atMost(c.Limits.Slow.allowed(int64(got)), most)))
	}
}

// server is the web server that the request came to, for its time limits.
func (c *call) server() *http.Server {
	if s, ok := c.r.Context().Value(http.ServerContextKey).(*http.Server); ok {
		return s
	}
	return &http.Server{} //nolint:gosec // it serves nothing: a request without a server has no limits
}

// atMost returns d, or limit where that is less and not 0.
func atMost(d, limit time.Duration) time.Duration {
	if limit > 0 {
		return min(d, limit)
	}
	return d
}

// writing sets by when an answer must have been read. Less than what a connection
// buffers is sent at once in any case.
func (c *call) writing(bytes int64) {
	const buffered = 4 << 10
	if bytes > buffered {
		most := atMost(c.Limits.Slow.allowed(bytes), c.server().WriteTimeout)
		_ = http.NewResponseController(c.w).SetWriteDeadline(time.Now().Add(most))
	}
}

// weight is what a request of a class without another measure counts for.
func (c *call) weight() int64 {
	if c.route.pattern != patternMetadata {
		return 1
	}
	c.param("key")
	return max(1, (int64(len(c.query["key"]))+unitNames-1)/unitNames)
}

// batchWeight is what a batch counts for: its EDEKs, or what the HSM has to do for them.
func batchWeight(edeks []claviger.EDEK) int64 {
	blocks := 0
	for i := range edeks {
		blocks += (len(edeks[i].Material) + claviger.IVSize - 1) / claviger.IVSize
	}
	return max(units(len(edeks)), units(blocks/blocksOfEDEK))
}

// checkLength refuses a name in a body or a query that is longer than one in a path
// may be.
func checkLength(name string, most int) error {
	if len(name) > most {
		return kmswire.Throw(kmswire.IllegalArgument, "a name is longer than "+strconv.Itoa(most)+" bytes")
	}
	return nil
}

// checkMaterial refuses an EDEK that is longer than one may be.
func (c *call) checkMaterial(material []byte) error {
	if len(material) > c.Limits.MaxMaterial {
		return kmswire.Throw(kmswire.IllegalArgument, "the material of an encrypted key has "+strconv.Itoa(len(material))+" bytes, and at most "+strconv.Itoa(c.Limits.MaxMaterial)+" are taken")
	}
	return nil
}

// tooManyParameters tells whether a query has more parameters than one may have.
func (c *call) tooManyParameters() bool {
	query := c.r.URL.RawQuery
	return strings.Count(query, "&")+strings.Count(query, ";") >= c.Limits.MaxParameters
}
