package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"claviger"
	"claviger/kmswire"
	"claviger/secret"
)

const (
	// decryptEDEKs is the number of different EDEKs that a load opens.
	decryptEDEKs = 100
	// batchEDEKs is the number of EDEKs that a NameNode re-encrypts in one request:
	// dfs.namenode.reencrypt.batch.size.
	batchEDEKs = 1000
	// generateEDEKs is the number of EDEKs that a NameNode requests when its queue of 500 is low:
	// hadoop.security.kms.client.encrypted.key.cache.size and .low-watermark, 500 and 0.3.
	generateEDEKs = 350
	// checkedEDEKs is how many EDEKs of an answer are opened to compare them.
	checkedEDEKs = 20
)

// prepare makes the requests of the loads. If open made the key, prepare rolls it, because a re-encryption needs a
// second version.
func (t *target) prepare(ctx context.Context) error {
	var err error
	if t.sent, err = t.kms.Generate(ctx, t.key, batchEDEKs); err != nil {
		return err
	}
	if t.made {
		if _, err := t.kms.Roll(ctx, t.key, nil); err != nil {
			return err
		}
	}
	path := "/v1/key/" + url.PathEscape(t.key)
	t.generate = request{edeks: generateEDEKs, bytes: t.request(http.MethodGet,
		path+"/_eek?eek_op=generate&num_keys="+strconv.Itoa(generateEDEKs), nil)}
	t.batch = request{edeks: batchEDEKs, bytes: t.request(http.MethodPost, path+"/_reencryptbatch",
		kmswire.AppendBatch(nil, t.key, t.sent))}
	c := &connection{t: t}
	defer c.close()
	for i := range t.sent[:decryptEDEKs] {
		e := &t.sent[i]
		r := request{edeks: 1, bytes: t.request(http.MethodPost, "/v1/keyversion/"+url.PathEscape(e.Version)+
			"/_eek?eek_op=decrypt", kmswire.AppendOpen(nil, t.key, e))}
		status, body, err := c.do(ctx, r.bytes)
		if err != nil || status != http.StatusOK {
			return errors.Join(err, fmt.Errorf("%s: the first decrypt: %s", t.name, answered(status, body)))
		}
		r.want = bytes.Clone(body)
		t.decrypts = append(t.decrypts, r)
	}
	if err := t.verify(ctx, t.sent[:checkedEDEKs]); err != nil {
		return fmt.Errorf("%s, before the load: %w", t.name, err)
	}
	return nil
}

// verify re-encrypts EDEKs and opens both, which must give the same DEKs.
func (t *target) verify(ctx context.Context, edeks []claviger.EDEK) error {
	fresh, err := t.kms.Reencrypt(ctx, t.key, edeks)
	if err != nil {
		return err
	}
	return t.compare(ctx, edeks, fresh)
}

// errWrongDEK is the error for an EDEK and its re-encryption that give different DEKs. It is a fault of the KMS, not an
// effect of the load.
var errWrongDEK = errors.New("WRONG DEK: an EDEK and its re-encryption were opened to different DEKs")

func (t *target) compare(ctx context.Context, old, fresh []claviger.EDEK) error {
	if len(old) != len(fresh) {
		return fmt.Errorf("%d EDEKs were re-encrypted to %d", len(old), len(fresh))
	}
	before, err := t.kms.Unwrap(ctx, t.key, "", old)
	if err != nil {
		return err
	}
	defer secret.WipeAll(before...)
	after, err := t.kms.Unwrap(ctx, t.key, "", fresh)
	if err != nil {
		return err
	}
	defer secret.WipeAll(after...)
	for i := range before {
		if len(before[i]) != len(old[i].Material) || !bytes.Equal(before[i], after[i]) {
			return errWrongDEK
		}
	}
	return nil
}

// verifyAnswer checks that the EDEKs in the last answer of a load open to the right DEKs.
func (t *target) verifyAnswer(ctx context.Context, load string, answer []byte) error {
	if load == loadDecrypt || load == loadMixed || answer == nil {
		return nil // each answer of a decrypt was compared
	}
	edeks, err := kmswire.ReadEDEKs(answer)
	if err != nil {
		return fmt.Errorf("the last answer is no list of EDEKs: %w", err)
	}
	if load == loadBatch {
		if len(edeks) != len(t.sent) {
			return fmt.Errorf("%d EDEKs were re-encrypted to %d", len(t.sent), len(edeks))
		}
		return t.compare(ctx, t.sent[:checkedEDEKs], edeks[:checkedEDEKs])
	}
	if len(edeks) != generateEDEKs {
		return fmt.Errorf("%d EDEKs were requested, and %d generated", generateEDEKs, len(edeks))
	}
	return t.verify(ctx, edeks[:checkedEDEKs])
}

// Names of loads.
const (
	loadDecrypt  = "decrypt"
	loadGenerate = "generate"
	loadBatch    = "batch"
	loadMixed    = "mixed"
)

// mixedCycle is the number of requests in a cycle of the load "mixed": one request generates EDEKs, and each of these
// EDEKs is decrypted twice, once for the file's writer and once for a reader.
const mixedCycle = 1 + 2*generateEDEKs

// next returns the n-th request of a load.
func (t *target) next(load string, n int) *request {
	switch {
	case load == loadBatch:
		return &t.batch
	case load == loadGenerate, load == loadMixed && n%mixedCycle == 0:
		return &t.generate
	default:
		return &t.decrypts[n%len(t.decrypts)]
	}
}
