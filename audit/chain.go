package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"claviger/secret"
)

// Stream gets the lines of a chain in addition to the file: standard output, or syslog. Its methods are not called
// concurrently.
type Stream interface {
	// Send takes a line with its newline. It does not wait for a peer. A line that it cannot send is lost for the
	// stream, and Err returns the error.
	Send(line []byte) error
	Err() error
	Close() error
	// Name is the name of the stream in messages.
	Name() string
}

// ChainConfig is the configuration of a Chain.
type ChainConfig struct {
	Node string // of this server; part of each record
	// Key makes the hashes with HMAC; nil: anybody can make them.
	Key     secret.Bytes
	File    *File // nil: only streams
	Streams []Stream
	Heads   []Heads
	// HeadEvery is the interval at which a new head is stored; 0 is 1 s.
	HeadEvery time.Duration
	// MaxQueue is the largest number of records that wait to be written. More events are lost; they are counted,
	// and the count is recorded. 0 is 65,536.
	MaxQueue int
	Log      *slog.Logger
}

const (
	defaultHeadEvery = time.Second
	defaultMaxQueue  = 1 << 16

	// batchDelay is the time that run waits for more records for the same write. Records of Begin are written at once.
	batchDelay = 5 * time.Millisecond
	// headTimeout is the time limit for storing a head.
	headTimeout = 5 * time.Second
)

// Chain writes audit events as JSON, one line each, chained by hashes, see Record. One goroutine does all writes,
// and takes all queued records at once. Log does not wait for the disk; Begin does.
type Chain struct {
	cfg    ChainConfig
	wake   chan struct{} // there is something to write
	urgent chan struct{} // Begin waits for the write
	stop   chan struct{}
	done   chan struct{}

	mu      sync.Mutex
	queue   [][]byte // bodies of records
	waiting []chan error
	lost    uint64 // events that were not queued since the last LostRecord
	err     error
	streams error // of Streams, if there is a file too
	closed  bool
	state   ChainState

	// Only the writing goroutine uses the fields below.
	seal      sealer
	seq       uint64
	last      digest
	headSeq   uint64    // seq of the head that all Heads have
	synced    uint64    // seq up to which the file is on the disk
	syncErr   error     // of the last sync
	headTried time.Time // when a head was last stored, or storing it failed
	headErr   error     // of the last try
	buf       []byte
	begin     *Record   // the record to write before all others
	marked    uint64    // the number in the file of UnwrittenFileOf
	markTried time.Time // when that number was last stored, or storing it failed
	markErr   error     // of the last try
}

var (
	_ Logger = (*Chain)(nil)
	_ Guard  = (*Chain)(nil)
)

// OpenChain finds the end of the chain, in the file and in Heads, and continues there. If Heads know records that
// the file does not have, it reports that in the log and in the chain, and continues after their numbers. So a
// later Verify finds that they are missing.
func OpenChain(ctx context.Context, cfg ChainConfig) (*Chain, error) {
	if cfg.HeadEvery <= 0 {
		cfg.HeadEvery = defaultHeadEvery
	}
	if cfg.MaxQueue <= 0 {
		cfg.MaxQueue = defaultMaxQueue
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Chain{
		cfg: cfg, seal: newSealer(cfg.Key),
		wake: make(chan struct{}, 1), urgent: make(chan struct{}, 1), stop: make(chan struct{}),
		done: make(chan struct{}),
	}
	if err := c.findEnd(ctx); err != nil {
		return nil, err
	}
	if err := c.openUnwritten(); err != nil {
		return nil, err
	}
	// Start even if the disk is full. Then only operations that must be recorded are refused, and Err returns the
	// error.
	if err := c.flush(time.Now(), true); err != nil && !safe(err) && !full(err) {
		return nil, err
	}
	go c.run()
	return c, nil
}

// findEnd sets seq, last and begin.
func (c *Chain) findEnd(ctx context.Context) error {
	var end tail
	if c.cfg.File != nil {
		var err error
		if end, err = c.cfg.File.tail(); err != nil {
			return err
		}
	}
	c.seq, c.last = end.seq, end.hash
	c.begin = c.newBegin("start")
	c.begin.Torn = end.torn
	for _, h := range c.cfg.Heads {
		head, ok, err := h.Load(ctx)
		if err != nil {
			return fmt.Errorf("the head of the audit log, stored in %s, cannot be read: %w; find out why before "+
				"you remove it", h.Name(), err)
		}
		if !ok {
			continue
		}
		sum, err := parseDigest(head.Hash)
		if err != nil {
			return fmt.Errorf("the head of the audit log, stored in %s, cannot be read: %w", h.Name(), err)
		}
		if head.Seq < c.seq || head.Seq == c.seq && sum == c.last {
			continue
		}
		if c.cfg.File != nil {
			c.begin.Missing = max(head.Seq-end.seq, 1)
			c.cfg.Log.Error("records at the end of the audit log are missing, or were changed",
				"file", c.cfg.File.Path(), "last record", end.seq, "last record in the head", head.Seq,
				"head stored in", h.Name(), "at", head.Time)
		}
		c.seq, c.last = head.Seq, sum
	}
	return nil
}

// newBegin returns the record with which a process or a file begins.
func (c *Chain) newBegin(reason string) *Record {
	mac := "sha256"
	if len(c.cfg.Key) > 0 {
		mac = "hmac-sha256"
	}
	return &Record{Kind: BeginRecord, Format: recordFormat, MAC: mac, Reason: reason}
}

// Log queues an event.
func (c *Chain) Log(_ context.Context, e Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	body := encodeEvent(&e, c.cfg.Node)
	c.mu.Lock()
	first := len(c.queue) == 0
	switch {
	case c.closed:
		c.err = errClosed
	case len(c.queue) >= c.cfg.MaxQueue:
		c.lost++
	default:
		c.queue = append(c.queue, body)
	}
	c.mu.Unlock()
	if first {
		signal(c.wake)
	}
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Begin writes the record of an attempt, and returns when it is on the disk. If the outcome is not recorded later
// (a crash, a full disk), this record is the only one of the operation.
func (c *Chain) Begin(ctx context.Context, e Event) error {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Status = Attempt
	body := encodeEvent(&e, c.cfg.Node)
	wait := make(chan error, 1)
	c.mu.Lock()
	switch {
	case c.closed:
		c.mu.Unlock()
		return refused(e, errClosed)
	case len(c.queue) >= c.cfg.MaxQueue:
		c.lost++
		c.mu.Unlock()
		signal(c.urgent) // let run try to write the queue
		return refused(e, fmt.Errorf("%d records wait to be written", c.cfg.MaxQueue))
	}
	c.queue, c.waiting = append(c.queue, body), append(c.waiting, wait)
	c.mu.Unlock()
	signal(c.urgent)
	select {
	case err := <-wait:
		if err != nil {
			return refused(e, err)
		}
		return nil
	case <-ctx.Done():
		return refused(e, fmt.Errorf("its record was not written in time: %w", ctx.Err()))
	}
}

// run writes until Close.
func (c *Chain) run() {
	defer close(c.done)
	tick := time.NewTicker(c.cfg.HeadEvery)
	defer tick.Stop()
	for {
		ended := false
		select {
		case <-c.urgent:
		case <-tick.C:
		case <-c.stop:
			ended = true
		case <-c.wake:
			pause := time.NewTimer(batchDelay)
			select {
			case <-pause.C:
			case <-c.urgent:
			case <-c.stop:
				ended = true
			}
			pause.Stop()
		}
		_ = c.flush(time.Now(), ended) // Err returns the error
		if ended {
			return
		}
	}
}

// flush writes the queued records. Records that cannot be written stay queued. If sync is true, all records are on
// the disk and the head is stored at the end.
func (c *Chain) flush(now time.Time, sync bool) error {
	c.mu.Lock()
	queue, waiting, lost, earlier := c.queue, c.waiting, c.lost, c.err
	c.queue, c.waiting, c.lost = nil, nil, 0
	c.mu.Unlock()

	err := c.write(now, queue, lost, sync || len(waiting) > 0)
	if err == nil && (sync || now.Sub(c.headTried) >= c.cfg.HeadEvery) {
		err = c.storeHead(now)
	}
	if err == nil && c.syncErr != nil {
		err = &laterError{c.syncErr, true} // not every flush syncs, and the records are still not on the disk
	}
	if err == nil && c.headErr != nil {
		err = &laterError{err: c.headErr}
	}
	var later *laterError
	var unwritten uint64
	recorded := lost
	c.mu.Lock()
	if err != nil && !errors.As(err, &later) {
		room := max(c.cfg.MaxQueue-len(queue), 0)
		if over := len(c.queue) - room; over > 0 {
			c.queue, lost = c.queue[:room], lost+uint64(over)
		}
		c.queue, c.lost, recorded = append(queue, c.queue...), c.lost+lost, 0
		unwritten = uint64(len(c.queue)) + c.lost
	}
	if !c.closed {
		c.err = err
	}
	c.state.Seq, c.state.Hash, c.state.Stored = c.seq, c.last.String(), c.headSeq
	c.state.Lost += recorded
	c.mu.Unlock()
	c.markUnwritten(now, unwritten, sync)
	if err != nil && (earlier == nil || earlier.Error() != err.Error()) {
		c.cfg.Log.Error("the audit log cannot be written", "err", err)
	}
	for _, w := range waiting {
		if later != nil && !later.unsafe {
			w <- nil
		} else {
			w <- err
		}
	}
	return err
}

// full reports whether err means that the disk is full.
func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}

// laterError is an error of a step other than the write to the file: of the rotation, of the sync, of storing the head,
// or of the streams if there is no file. If it is unsafe, the records may not be on the disk.
type laterError struct {
	err    error
	unsafe bool
}

func (e *laterError) Error() string { return e.err.Error() }
func (e *laterError) Unwrap() error { return e.err }

// write seals and writes records. After an error that is not a *laterError, no record was written.
func (c *Chain) write(now time.Time, queue [][]byte, lost uint64, sync bool) error {
	var later error
	begin := c.begin
	if f := c.cfg.File; f != nil {
		newFile, err := f.RotateIfNeeded(now)
		if err != nil && !newFile {
			return err // the open file was moved or removed, so the records would be in a file without a path
		}
		if later = err; newFile && begin == nil {
			begin = c.newBegin("file")
			c.begin = begin // until it is written
		}
	}
	if len(queue) == 0 && lost == 0 && begin == nil && (!sync || c.synced == c.seq) {
		c.checkStreams()
		return nil // without a new file, and so without an error in later
	}
	b, seq, last := c.buf[:0], c.seq, c.last
	var ends []int
	add := func(body []byte) {
		seq++
		b, last = c.seal.seal(b, seq, last, body)
		ends = append(ends, len(b))
	}
	if begin != nil {
		begin.Time, begin.Node = stamp(now), c.cfg.Node
		add(encodeBody(*begin))
	}
	for _, body := range queue {
		add(body)
	}
	if lost > 0 {
		add(encodeBody(Record{Kind: LostRecord, Time: stamp(now), Node: c.cfg.Node, Count: lost}))
	}
	if c.cfg.File != nil && len(b) > 0 {
		if _, err := c.cfg.File.Write(b); err != nil {
			return err
		}
	}
	c.seq, c.last, c.begin = seq, last, nil
	accepted := c.send(b, ends)
	const keep = 1 << 20
	if c.buf = b[:0]; cap(b) > keep {
		c.buf = nil
	}
	if c.cfg.File == nil {
		if c.synced = c.seq; !accepted {
			return &laterError{errors.New("no stream accepts the records"), true}
		}
		return nil
	}
	if sync {
		if err := c.syncFile(); err != nil {
			return err
		}
	}
	return written(later)
}

// syncFile brings the records of the file to the disk.
func (c *Chain) syncFile() error {
	if c.syncErr = c.cfg.File.Sync(); c.syncErr != nil {
		return &laterError{c.syncErr, true}
	}
	c.synced = c.seq
	return nil
}

// written returns the result of a write that succeeded. rotation is the error of the rotation before the write.
func written(rotation error) error {
	if rotation == nil {
		return nil
	}
	return &laterError{err: rotation}
}

// send sends lines to the streams. accepted is true if at least one stream accepted all lines.
func (c *Chain) send(b []byte, ends []int) (accepted bool) {
	for _, s := range c.cfg.Streams {
		at, all := 0, true
		for _, end := range ends {
			all = s.Send(b[at:end]) == nil && all
			at = end
		}
		accepted = accepted || all
	}
	c.checkStreams()
	return accepted
}

// checkStreams stores the streams' current errors.
func (c *Chain) checkStreams() {
	var err error
	for _, s := range c.cfg.Streams {
		if e := s.Err(); e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", s.Name(), e))
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.streams = err
}

// storeHead syncs the file and stores its end in Heads. It returns an error of the file. headErr keeps an error of
// Heads.
func (c *Chain) storeHead(now time.Time) error {
	if c.headSeq == c.seq {
		return nil
	}
	c.headTried = now
	if c.cfg.File != nil && c.synced != c.seq {
		if err := c.syncFile(); err != nil {
			return err
		}
	}
	head := Head{Node: c.cfg.Node, Seq: c.seq, Hash: c.last.String(), Time: stamp(now)}
	var errs []error
	for _, h := range c.cfg.Heads {
		ctx, cancel := context.WithTimeout(context.Background(), headTimeout)
		if err := h.Save(ctx, head); err != nil {
			errs = append(errs, fmt.Errorf("the head of the audit log cannot be stored in %s: %w", h.Name(), err))
		}
		cancel()
	}
	if c.headErr = errors.Join(errs...); c.headErr == nil {
		c.headSeq = c.seq
	}
	return nil
}

// Reopen opens the file again, for example after a rotation by logrotate.
func (c *Chain) Reopen() error {
	if c.cfg.File == nil {
		return nil
	}
	err := c.cfg.File.Reopen()
	signal(c.urgent)
	return err
}

// StreamErr is nil while all streams accept all lines.
func (c *Chain) StreamErr() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streams
}

// ChainState is what an operator may see of a chain.
type ChainState struct {
	Node    string
	Seq     uint64 // of the last record that was written
	Hash    string // of that record
	Stored  uint64 // Seq of the head that all places of the head have
	Waiting int    // records that are not written yet
	Lost    uint64 // records since the start of the process that were not written
	Streams []string
	Err     error // of Err
	// StreamErr is that of StreamErr.
	StreamErr error
}

// State returns the state of the chain. It waits for no disk.
func (c *Chain) State() ChainState {
	err, streams := c.Err(), c.StreamErr()
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.state
	s.Node, s.Waiting, s.Err, s.StreamErr = c.cfg.Node, len(c.queue), err, streams
	s.Lost += c.lost
	for _, stream := range c.cfg.Streams {
		s.Streams = append(s.Streams, stream.Name())
	}
	return s
}

// Replaced returns the number of records that streams have replaced by a LargeRecord.
func (c *Chain) Replaced() (n uint64) {
	for _, s := range c.cfg.Streams {
		if s, ok := s.(interface{ Replaced() uint64 }); ok {
			n += s.Replaced()
		}
	}
	return n
}

// Err is nil while all records are written to the file, or to a stream if there is no file.
func (c *Chain) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost > 0 {
		return errors.Join(c.err, fmt.Errorf("%d records of the audit log could not be written, and are lost",
			c.lost))
	}
	return c.err
}

// Stopped returns the error that prevents records. It is Err without the errors that Degraded returns.
func (c *Chain) Stopped() error {
	if err := c.Err(); !c.recordsSafe(err) {
		return err
	}
	return nil
}

// Degraded returns an error that does not affect the records: they are on the disk, but their head could not be
// stored, or the file could not be rotated.
func (c *Chain) Degraded() error {
	if err := c.Err(); c.recordsSafe(err) {
		return err
	}
	return nil
}

// recordsSafe reports whether err, a result of Err, does not affect the records.
func (c *Chain) recordsSafe(err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return safe(err) && c.lost == 0
}

// safe reports whether err does not affect the records, which are on the disk.
func safe(err error) bool {
	var later *laterError
	return errors.As(err, &later) && !later.unsafe
}

// Close writes the queued records, stores the head, and closes file and streams.
func (c *Chain) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	close(c.stop)
	<-c.done
	err := c.closeSinks()
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := uint64(len(c.queue)) + c.lost; n > 0 {
		err = errors.Join(err, fmt.Errorf("%d records of the audit log could not be written%s", n, c.markNote(n)))
	}
	c.err = errClosed
	return err
}

func (c *Chain) closeSinks() error {
	var errs []error
	if c.cfg.File != nil {
		errs = append(errs, c.cfg.File.Close())
	}
	for _, s := range c.cfg.Streams {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}
