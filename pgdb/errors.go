package pgdb

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"claviger"
)

// SQLSTATE codes, some of which the stores use too:
// https://www.postgresql.org/docs/current/errcodes-appendix.html
const (
	UndefinedTable       = "42P01"
	ForeignKey           = "23503"
	Unique               = "23505"
	codeSerialization    = "40001"
	codeDeadlock         = "40P01"
	ReadOnly             = "25006"
	codeBadEncoding      = "22021"
	Rights               = "42501"
	classRefused         = "42" // no rights, or no such table: the same for every call
	codeStatementEnded   = "57014"
	codeLockTimeout      = "55P03"
	codeDiskFull         = "53100"
	codeInvalidParameter = "22023"
)

// Code returns the SQLSTATE of an error that the server sent, or "".
func Code(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// DiskFull reports whether the disk of the server is full.
func DiskFull(err error) bool { return Code(err) == codeDiskFull }

// UniqueOn reports whether an error is a violation of the named unique constraint.
func UniqueOn(err error, constraint string) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && e.Code == Unique && e.ConstraintName == constraint
}

// conflict reports whether a transaction conflicted with another one, and may be repeated.
func (d *DB) conflict(err error) bool {
	code := Code(err)
	return code == codeSerialization || code == codeDeadlock || slices.ContainsFunc(d.cfg.Conflicts,
		func(name string) bool { return UniqueOn(err, name) })
}

// Unreachable reports whether the server or the connection to it was lost, while nothing was committed.
func Unreachable(err error) bool {
	if errors.Is(err, errInDoubt) {
		return false
	}
	switch code := Code(err); {
	case code == "":
	case strings.HasPrefix(code, "08"), strings.HasPrefix(code, "57P"), code == ReadOnly, code == "53300":
		// connection, shutdown and start, standby, too many clients
		return true
	default:
		return false
	}
	var connect *pgconn.ConnectError
	var network net.Error
	return errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) || pgconn.SafeToRetry(err) ||
		strings.Contains(err.Error(), "conn closed") // pgconn has no value for it
}

// Jitter returns a random time around d, so that callers do not all retry at the same moment.
func Jitter(d time.Duration) time.Duration {
	return d/2 + rand.N(d) //nolint:gosec // not a secret
}

// Fail turns an error of PostgreSQL into one of ours, which names the database, the place of its
// URI and the cure. nil stays nil, and our own errors stay as they are.
func (d *DB) Fail(op, key string, err error) error {
	var own *claviger.Error
	if err == nil || errors.As(err, &own) {
		return err
	}
	fail := func(kind claviger.Kind, cure string) error {
		return claviger.Errorf(op, kind, key, "%s %s (%s): %w%s", d.cfg.What, d.uri, d.cfg.Where, oneLine{err}, cure)
	}
	switch code := Code(err); {
	case d.closed.Load():
		return claviger.Errorf(op, claviger.Closed, key, "%s %s is closed", d.cfg.What, d.uri)
	case errors.Is(err, errInDoubt):
		return fail(claviger.Unavailable, "; "+d.cfg.UnknownOutcome)
	case d.conflict(err):
		return fail(claviger.Unavailable, "; other nodes changed the same rows repeatedly; nothing was changed")
	case code == ReadOnly:
		return claviger.Unreachable(fail(claviger.Unavailable, "; the server accepts no writes: it is a standby (name "+
			"all hosts in the URI), or default_transaction_read_only is on; nothing was changed"))
	case Unreachable(err), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		err := fail(claviger.Unavailable, "")
		if wrongConfig(err) {
			return err
		}
		return claviger.Unreachable(err)
	case code == codeStatementEnded, code == codeLockTimeout:
		return fail(claviger.Unavailable, "; the server did not finish the statement in time; nothing was changed")
	case code == codeDiskFull:
		return fail(claviger.Unavailable, "; the server's disk is full; nothing was changed")
	case strings.HasPrefix(code, "28"):
		if unread := passwordFile(d.cfg.URI); unread != nil {
			return claviger.Errorf(op, claviger.Unavailable, key, "%s %s (%s): %w; no password was sent, because its "+
				"password file cannot be read: %w; let the user that this process runs as read the file (mode "+
				"0600), or name the right file with ?passfile=",
				d.cfg.What, d.uri, d.cfg.Where, oneLine{err}, unread)
		}
		return fail(claviger.Unavailable, "; check the role, its password file (passfile in the URI, or PGPASSFILE, "+
			"mode 0600) and the server's pg_hba.conf")
	case code == Rights:
		return fail(claviger.Unavailable, "; the role must own the database's tables: restore with pg_restore "+
			"--no-owner --role ROLE, or ALTER TABLE ... OWNER TO ROLE")
	case code == "3D000":
		return fail(claviger.Unavailable, "; make it with: CREATE DATABASE ... OWNER ...")
	case code == codeBadEncoding:
		return claviger.Errorf(op, claviger.Invalid, key, "PostgreSQL cannot store a text that is not UTF-8, or that "+
			"has a zero byte: %w", err)
	}
	return fail(claviger.Internal, "")
}

// wrongConfig reports whether an operator must correct the configuration: the host name does not exist, or the server's
// certificate is not trusted.
func wrongConfig(err error) bool {
	var name *net.DNSError
	var certificate *tls.CertificateVerificationError
	return errors.As(err, &name) && name.IsNotFound || errors.As(err, &certificate)
}

// oneLine is an error whose text is one line without repetitions. The driver writes a line for each attempt, and with
// some values of sslmode two attempts for each host.
type oneLine struct{ error }

func (e oneLine) Error() string {
	var lines []string
	for line := range strings.Lines(e.error.Error()) {
		if line = strings.Join(strings.Fields(line), " "); line != "" && !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, " ")
}
func (e oneLine) Unwrap() error { return e.error }
