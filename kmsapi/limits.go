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
	Grace time.Duration // during this time any rate is allowed
	Rate  int64         // bytes a second, after Grace
}

// DefaultSlow is used if Limits.Slow is zero.
var DefaultSlow = Slow{Grace: 10 * time.Second, Rate: 256 << 10}

// blocksOfEDEK is how many blocks of the HSM an EDEK with a DEK of 256 bits takes.
// Usual DEKs are not longer. A batch of longer DEKs weighs more.
const blocksOfEDEK = 2

const (
	// defaultMaterial is the longest material of an EDEK, in bytes. DEKs of HDFS
	// have 16 to 32 bytes. The HSM works on each 16 bytes.
	defaultMaterial   = 1024
	defaultNames      = 1000 // a stock client sends as many names as fit in 1,500 bytes of URL
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

// allowed returns how long the transfer of that many bytes may take.
func (s Slow) allowed(bytes int64) time.Duration {
	return s.Grace + time.Duration(float64(bytes)/float64(s.Rate)*float64(time.Second))
}

// readDeadlines returns a function to call before each read of the body, with the
// number of bytes read so far; -1 means that the body has ended. It sets the
// connection's read deadline, which is never later than the web server's
// ReadTimeout allows. Errors are ignored: on a connection without deadlines the
// web server's own timeouts remain.
func (c *call) readDeadlines() func(got int) {
	control, began := c.connection(), time.Now()
	most := c.server().ReadTimeout
	return func(got int) {
		if got < 0 {
			_ = control.SetReadDeadline(time.Time{}) // a read deadline would also cancel the request
			return
		}
		_ = control.SetReadDeadline(began.Add(atMost(c.Limits.Slow.allowed(int64(got)), most)))
	}
}

// deadliner sets the deadlines of a connection.
type deadliner interface {
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// connection returns the deadliner of the request. The ResponseWriter of net/http is one itself.
func (c *call) connection() deadliner {
	if d, ok := c.w.(deadliner); ok {
		return d
	}
	return http.NewResponseController(c.w)
}

// server returns the web server of the request, for its time limits.
func (c *call) server() *http.Server {
	if s, ok := c.r.Context().Value(http.ServerContextKey).(*http.Server); ok {
		return s
	}
	return &http.Server{} //nolint:gosec // it serves nothing: a request without a server has no limits
}

// atMost returns the lesser of d and limit. A limit of 0 means no limit.
func atMost(d, limit time.Duration) time.Duration {
	if limit > 0 {
		return min(d, limit)
	}
	return d
}

// writeDeadline sets the time by which the client must have read an answer. A
// short answer needs none: the connection buffers it.
func (c *call) writeDeadline(bytes int64) {
	const buffered = 4 << 10
	if bytes > buffered {
		most := atMost(c.Limits.Slow.allowed(bytes), c.server().WriteTimeout)
		_ = c.connection().SetWriteDeadline(time.Now().Add(most))
	}
}

// weight returns how many slots the request takes: more than one only for a request
// for metadata of many keys.
func (c *call) weight() int64 {
	if c.route.pattern != patternMetadata {
		return 1
	}
	return max(1, (int64(len(c.values("key")))+unitNames-1)/unitNames)
}

// batchWeight returns the weight of a batch: by its number of EDEKs, or by the
// HSM's blocks if that is more.
func batchWeight(edeks []claviger.EDEK) int64 {
	blocks := 0
	for i := range edeks {
		blocks += (len(edeks[i].Material) + claviger.IVSize - 1) / claviger.IVSize
	}
	return max(units(len(edeks)), units(blocks/blocksOfEDEK))
}

// checkLength refuses a name in a body or a query that is too long. The same limit
// holds for names in the path.
func checkLength(name string, most int) error {
	if len(name) > most {
		return kmswire.Throw(kmswire.IllegalArgument, "a name is longer than "+strconv.Itoa(most)+" bytes")
	}
	return nil
}

// checkMaterial refuses an EDEK whose material is too long.
func (c *call) checkMaterial(material []byte) error {
	if len(material) > c.Limits.MaxMaterial {
		return kmswire.Throw(kmswire.IllegalArgument, "the material of an encrypted key has "+
			strconv.Itoa(len(material))+" bytes, and at most "+strconv.Itoa(c.Limits.MaxMaterial)+" are taken")
	}
	return nil
}

// tooManyParameters reports whether the query has more than MaxParameters
// parameters.
func (c *call) tooManyParameters() bool {
	query := c.r.URL.RawQuery
	return strings.Count(query, "&")+strings.Count(query, ";") >= c.Limits.MaxParameters
}
