package zookeeper

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/go-zookeeper/zk"

	"claviger"
	"claviger/metastore"
	"claviger/secret"
)

// Signers stores the secrets that sign cookies in one node, as Hadoop's ZKSignerSecretProvider does:
//
//	int32 0 (version of the format) | int32 length, next secret |
//	int32 length, current secret | int32 length, previous secret (0: none) |
//	int64 rollover, milliseconds since the epoch
//
// All numbers are big-endian. The version of metastore.SignerSecrets is the node's version plus one, because
// ZooKeeper counts from 0.
type Signers struct {
	client *Client
	path   string
}

var _ metastore.Signers = (*Signers)(nil)

// NewSigners makes a Signers for the node path. The error is of kind Invalid if path is not a valid path.
func NewSigners(c *Client, path string) (*Signers, error) {
	if err := checkPath(path); err != nil {
		return nil, claviger.E("zookeeper.NewSigners", claviger.Invalid, "", err)
	}
	return &Signers{client: c, path: path}, nil
}

// SignerSecrets implements metastore.Signers.
func (s *Signers) SignerSecrets(ctx context.Context) (metastore.SignerSecrets, bool, error) {
	const op = "zookeeper.SignerSecrets"
	// Without a sync, our ZooKeeper server may return the secrets from before another node's rollover. Then we would
	// refuse that node's cookies until the next rollover.
	if err := s.client.sync(ctx, op, s.path); err != nil {
		return metastore.SignerSecrets{}, false, err
	}
	n, err := s.client.get(ctx, op, s.path)
	switch {
	case errors.Is(err, zk.ErrNoNode):
		return metastore.SignerSecrets{}, false, wrap(op, s.client.checkParentACLs(ctx, op, s.path))
	case err == nil:
		err = s.client.checkACL(ctx, op, s.path, n)
	}
	if err != nil {
		return metastore.SignerSecrets{}, false, wrap(op, err)
	}
	secrets, err := parseSecrets(n.data)
	if err != nil {
		return metastore.SignerSecrets{}, false, claviger.Errorf(op, claviger.Unavailable, "",
			"ZooKeeper node %s: %w; remove the node and restart each KMS, which makes new secrets", s.path, err)
	}
	secrets.Version = int64(n.version) + 1
	return secrets, true, nil
}

// SwapSignerSecrets implements metastore.Signers.
func (s *Signers) SwapSignerSecrets(ctx context.Context, secrets metastore.SignerSecrets) (bool, error) {
	const op = "zookeeper.SwapSignerSecrets"
	data := appendSecrets(secrets)
	var unsure bool
	var err error
	if secrets.Version == 0 {
		unsure, err = s.client.create(ctx, op, s.path, data)
	} else {
		version := int32(secrets.Version - 1) //nolint:gosec // SignerSecrets made Version from an int32
		unsure, err = s.client.set(ctx, op, s.path, data, version)
	}
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, zk.ErrNoNode): // removed by hand: the next node that starts makes it again
		return false, nil
	case !errors.Is(err, zk.ErrNodeExists) && !errors.Is(err, zk.ErrBadVersion):
		return false, wrap(op, err)
	case !unsure:
		return false, nil
	}
	// The node may have changed by our own earlier attempt, whose answer was lost.
	n, err := s.client.get(ctx, op, s.path)
	if err != nil {
		return false, wrap(op, err)
	}
	return bytes.Equal(n.data, data), nil
}

// wrap makes a *claviger.Error from any other error: an error about a node, which metastore.Signers does not define, or
// the error of the caller's ctx. It returns nil for nil.
func wrap(op string, err error) error {
	var e *claviger.Error
	switch {
	case err == nil || errors.As(err, &e):
		return err
	case isNodeError(err):
		return claviger.Errorf(op, claviger.Unavailable, "", "ZooKeeper: %w; does another program change "+
			"the nodes of the KMS?", err)
	}
	return claviger.Errorf(op, claviger.Unavailable, "", "ZooKeeper has not answered: %w", err)
}

const (
	secretsFormat = 0
	// maxSecret is the maximum length in bytes; Hadoop's secrets have 32.
	maxSecret = 4096
)

func appendSecrets(s metastore.SignerSecrets) []byte {
	b := binary.BigEndian.AppendUint32(nil, secretsFormat)
	for _, value := range []secret.Bytes{s.Next, s.Current, s.Previous} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(value))) //nolint:gosec // a secret is short
		b = append(b, value...)
	}
	rollover := uint64(s.Rollover.UnixMilli()) //nolint:gosec // a signed number, as Java writes it
	return binary.BigEndian.AppendUint64(b, rollover)
}

// parseSecrets reads the node's data. Like Hadoop, it refuses a newer version of the format.
func parseSecrets(b []byte) (s metastore.SignerSecrets, err error) {
	if len(b) < 4 {
		return s, fmt.Errorf("its %d bytes are not signer secrets", len(b))
	}
	if v := int32(binary.BigEndian.Uint32(b)); v > secretsFormat || v < 0 { //nolint:gosec // a signed number
		return s, fmt.Errorf("its format has version %d; this program can read versions up to %d", v, secretsFormat)
	}
	b = b[4:]
	for i, value := range []*secret.Bytes{&s.Next, &s.Current, &s.Previous} {
		if len(b) < 4 {
			return s, errors.New("it ends in the middle of the secrets")
		}
		n := binary.BigEndian.Uint32(b)
		b = b[4:]
		if n > maxSecret {
			return s, fmt.Errorf("a secret has %d bytes, and may have at most %d", n, maxSecret)
		}
		if int(n) > len(b) {
			return s, fmt.Errorf("the length of a secret is %d bytes, but only %d follow", n, len(b))
		}
		if n > 0 {
			*value = bytes.Clone(b[:n])
		} else if i < 2 {
			return s, errors.New("the current or the next secret is missing")
		}
		b = b[n:]
	}
	if len(b) < 8 {
		return s, errors.New("it ends before the date of the rollover")
	}
	s.Rollover = time.UnixMilli(int64(binary.BigEndian.Uint64(b))) //nolint:gosec // a signed number
	return s, nil
}
