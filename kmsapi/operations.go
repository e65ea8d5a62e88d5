package kmsapi

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"claviger"
	"claviger/kmswire"
	"claviger/provider"
	"claviger/secret"
)

// bodyKind says which body a route takes, and so how long it may be.
type bodyKind int

const (
	noBody    bodyKind = iota // none; a body that a client sends is not read
	plainBody                 // one JSON object
	batchBody                 // a JSON array of EDEKs
)

// Deadlines of operations. Hadoop's clients wait 60 s for an answer, so longer work
// is useless.
const (
	quick = 30 * time.Second
	long  = 60 * time.Second
)

// route is one operation.
type route struct {
	method, pattern string
	op              string // its name in metrics: that of Hadoop's meter, in lower case
	body            bodyKind
	json            bool // it answers JSON, so the client must accept JSON
	deadline        time.Duration
	class           class
	handle          func(context.Context, *call) error
}

// routes are the KMS's operations. Every pattern also answers OPTIONS, and HEAD if
// it has GET.
var routes = []route{
	{http.MethodPost, patternKeys, "create_key", plainBody, true, long, management, create},
	{http.MethodGet, patternMetadata, "get_keys_metadata", noBody, true, quick, reads, keysMetadata},
	{http.MethodGet, patternNames, "get_keys", noBody, true, quick, reads, names},
	{http.MethodGet, patternKey, "get_metadata", noBody, true, quick, reads, metadata},
	{http.MethodPost, patternKey, "roll_new_version", plainBody, true, long, management, roll},
	{http.MethodDelete, patternKey, "delete_key", noBody, false, long, management, remove},
	{http.MethodGet, patternKey + "/_metadata", "get_metadata", noBody, true, quick, reads, metadata},
	{http.MethodPost, patternKey + "/_invalidatecache", "invalidate_cache", noBody, false, quick, management,
		invalidate},
	{http.MethodGet, patternKey + "/_currentversion", "get_current_key", noBody, true, quick, reads, currentVersion},
	{http.MethodGet, patternKey + "/_versions", "get_key_versions", noBody, true, quick, reads, versions},
	{http.MethodGet, patternKey + "/_eek", "generate_eek", noBody, true, quick, generates, generate},
	{http.MethodGet, patternKey + "/_dek", "generate_eek", noBody, true, quick, generates, dataKey}, // Ranger's
	{http.MethodPost, patternKey + "/_reencryptbatch", "reencrypt_eek_batch", batchBody, true, long, batches,
		reencryptBatch},
	{http.MethodPost, patternTrusteeKey, "undelete_key", noBody, false, long, management, trusteeOp},
	{http.MethodGet, patternTrusteeKey, "get_metadata", noBody, true, quick, reads, describe},
	{http.MethodGet, patternDeleted, "get_deleted_keys", noBody, true, quick, reads, deletedKeys},
	{http.MethodGet, patternKeyVersion, "get_key_version", noBody, true, quick, reads, keyVersion},
	{http.MethodPost, patternKeyVersion + "/_eek", "decrypt_eek", plainBody, true, quick, decrypts, openEDEK},
}

func create(ctx context.Context, c *call) error {
	in, err := kmswire.ReadCreate(c.body)
	if err != nil {
		return err
	}
	if err := checkLength(in.Name, claviger.MaxName); err != nil {
		return err
	}
	c.name = in.Name
	spec := provider.Spec{
		Name: in.Name, Cipher: in.Cipher, BitLength: in.Length, Description: in.Description,
		Attributes: in.Attributes, Material: in.Material,
	}
	if in.BadAttribute {
		return kmswire.Throw(kmswire.IOException, "Can't set metadata key "+in.Name)
	}
	if err := c.checkQuota(); err != nil {
		return err
	}
	v, err := c.Ring.Create(ctx, c.caller, spec)
	if err != nil {
		c.returnQuota(err)
	}
	algorithm, _, _ := strings.Cut(in.Cipher, "/")
	if claviger.Is(err, claviger.UnknownCipher) && strings.EqualFold(algorithm, "SM4") {
		// Hadoop supports SM4, so Hadoop's answer to an unknown cipher would mislead.
		return kmswire.Throw(kmswire.IllegalArgument, "Key "+in.Name+": cipher "+in.Cipher+
			" is not supported; the ciphers are "+claviger.DefaultCipher+" with 128, 192 or 256 bits")
	}
	if err != nil {
		return err
	}
	c.w.Header().Set("Location", c.baseURL()+base+"/v1/key/"+url.PathEscape(in.Name))
	c.json(http.StatusCreated, func(b []byte) []byte { return kmswire.AppendKeyVersion(b, &v) })
	// The keyring returns copies, so no other code uses the material that an operation wipes. It is not wiped after an
	// error: a provider that timed out may still read the material that it got.
	secret.WipeAll(in.Material, v.Material)
	return nil
}

func roll(ctx context.Context, c *call) error {
	in, err := kmswire.ReadRoll(c.body)
	if err != nil {
		return err
	}
	if err := c.checkQuota(); err != nil {
		return err
	}
	v, err := c.Ring.Roll(ctx, c.caller, c.name, in.Material)
	if err != nil {
		c.returnQuota(err)
	}
	if claviger.Is(err, claviger.KeyNotFound) && in.Material != nil {
		return kmswire.Throw(kmswire.IOException, "Key "+c.name+" not found")
	}
	if err != nil {
		return err
	}
	c.json(http.StatusOK, func(b []byte) []byte { return kmswire.AppendKeyVersion(b, &v) })
	secret.WipeAll(in.Material, v.Material)
	return nil
}

func remove(ctx context.Context, c *call) error {
	if err := c.Ring.Delete(ctx, c.caller, c.name); err != nil {
		return err
	}
	c.answer(http.StatusOK, "text/plain;charset=utf-8", nil)
	return nil
}

func invalidate(ctx context.Context, c *call) error {
	if err := c.Ring.Invalidate(ctx, c.caller, c.name); err != nil {
		return err
	}
	c.answer(http.StatusOK, "text/plain;charset=utf-8", nil)
	return nil
}

func names(ctx context.Context, c *call) error {
	if err := c.reserveEstimate(ctx, c.lists.names, 1); err != nil {
		return err
	}
	list, err := c.Ring.Names(ctx, c.caller)
	if err != nil {
		return err
	}
	if err := c.reserveActual(ctx, c.lists.names, 1, namesMemory(list)); err != nil {
		return err
	}
	return c.list(ctx, len(list), func(b []byte, i int) []byte { return kmswire.AppendName(b, list[i]) })
}

func keysMetadata(ctx context.Context, c *call) error {
	requested := c.values("key")
	if n := len(requested); n > c.Limits.MaxNames {
		return kmswire.Throw(kmswire.IllegalArgument, fmt.Sprintf(
			"the request names %d keys, and one request for metadata may name at most %d; split the "+
				"request", n, c.Limits.MaxNames))
	}
	var once []string                             // each name once
	index := make(map[string]int, len(requested)) // of a name in once
	for _, name := range requested {
		if err := checkLength(name, claviger.MaxName); err != nil {
			return err
		}
		if _, ok := index[name]; !ok {
			index[name] = len(once)
			once = append(once, name)
		}
	}
	if err := c.reserveEstimate(ctx, c.lists.metadata, len(once)); err != nil {
		return err
	}
	list, err := c.Ring.KeysMetadata(ctx, c.caller, once)
	if err != nil {
		return err
	}
	var bytes int64
	for _, m := range list {
		bytes += metadataMemory(m)
	}
	if err := c.reserveActual(ctx, c.lists.metadata, len(once), bytes); err != nil {
		return err
	}
	return c.list(ctx, len(requested), func(b []byte, i int) []byte {
		return kmswire.AppendMetadata(b, list[index[requested[i]]])
	})
}

func metadata(ctx context.Context, c *call) error {
	m, err := c.Ring.Metadata(ctx, c.caller, c.name)
	if err != nil {
		return err
	}
	c.json(http.StatusOK, func(b []byte) []byte { return kmswire.AppendMetadata(b, m) })
	return nil
}

func currentVersion(ctx context.Context, c *call) error {
	v, err := c.Ring.Current(ctx, c.caller, c.name)
	if err != nil {
		return err
	}
	c.json(http.StatusOK, func(b []byte) []byte { return kmswire.AppendKeyVersion(b, v) })
	if v != nil {
		v.Material.Wipe()
	}
	return nil
}

func keyVersion(ctx context.Context, c *call) error {
	v, err := c.Ring.Version(ctx, c.caller, c.name)
	if err != nil {
		return err
	}
	c.json(http.StatusOK, func(b []byte) []byte { return kmswire.AppendKeyVersion(b, v) })
	if v != nil {
		v.Material.Wipe()
	}
	return nil
}

func versions(ctx context.Context, c *call) error {
	if err := c.reserveEstimate(ctx, c.lists.versions, 1); err != nil {
		return err
	}
	vs, err := c.Ring.Versions(ctx, c.caller, c.name)
	if err != nil {
		return err
	}
	defer func() {
		for _, v := range vs {
			v.Material.Wipe()
		}
	}()
	if err := c.reserveActual(ctx, c.lists.versions, 1, versionsMemory(vs)); err != nil {
		return err
	}
	return c.list(ctx, len(vs), func(b []byte, i int) []byte { return kmswire.AppendKeyVersion(b, &vs[i]) })
}

// wrongOp is Hadoop's answer to an unknown eek_op, and to a known one on the wrong
// path. In Hadoop, too, its text starts with the name of the class.
var wrongOp = kmswire.Throw(kmswire.IllegalArgument,
	"IllegalArgumentException Wrong eek_op value, it must be generate or decrypt")

// eekOp returns the parameter eek_op.
func (c *call) eekOp() (string, error) {
	op, ok := c.param("eek_op")
	if !ok {
		return "", kmswire.Throw(kmswire.IllegalArgument, "Parameter 'eekOp' cannot be null")
	}
	return op, nil
}

func generate(ctx context.Context, c *call) error {
	n, err := c.numKeys() // first: Jersey parses it before it calls the KMS
	if err != nil {
		return err
	}
	op, err := c.eekOp()
	if err != nil {
		return err
	}
	if op != kmswire.OpGenerate {
		return wrongOp
	}
	if err := c.admit(ctx, generates, units(n)); err != nil {
		return err
	}
	if err := c.reserve(ctx, int64(n)*edekMemory); err != nil {
		return err
	}
	edeks, err := c.Ring.Generate(ctx, c.caller, c.name, n)
	if err != nil {
		return generateError(c, err)
	}
	c.edeks = len(edeks)
	w := kmswire.NewEDEKWriter(c.name)
	return c.sizedList(ctx, len(edeks), func(i int) int { return w.Size(&edeks[i]) },
		func(b []byte, i int) []byte { return w.Append(b, &edeks[i]) })
}

// numKeys parses num_keys as a Java int. If it is missing or empty, it is 1.
func (c *call) numKeys() (int, error) {
	text, _ := c.param("num_keys")
	if text == "" {
		return 1, nil
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		return 0, kmswire.Throw(kmswire.QueryParamException,
			"java.lang.NumberFormatException: For input string: \""+text+"\"")
	}
	if n > int64(c.Limits.MaxKeys) {
		return 0, kmswire.Throw(kmswire.IllegalArgument, fmt.Sprintf(
			"num_keys=%d is more than %d, the limit of one request; split the request", n, c.Limits.MaxKeys))
	}
	return int(n), nil
}

// openEDEK decrypts or re-encrypts one EDEK.
func openEDEK(ctx context.Context, c *call) error {
	op, err := c.eekOp()
	if err != nil {
		return err
	}
	in, err := kmswire.ReadOpen(c.body)
	if err != nil {
		return err
	}
	if err := checkLength(in.Name, claviger.MaxName); err != nil {
		return err
	}
	if err := c.checkMaterial(in.Material); err != nil {
		return err
	}
	e := claviger.EDEK{Version: c.name, IV: in.IV, Material: in.Material}
	c.edeks = 1
	switch op {
	case kmswire.OpDecrypt:
		dek, err := c.Ring.Decrypt(ctx, c.caller, in.Name, in.HasName, e)
		if err != nil {
			return err
		}
		// The answer has the key name of the version. The key name in the request may differ if key
		// authorization is off.
		c.json(http.StatusOK, func(b []byte) []byte { return kmswire.AppendDEK(b, c.version.Key, dek) })
		dek.Wipe()
		return nil
	case kmswire.OpReencrypt:
		c.opName = "reencrypt_eek"
		fresh, err := c.Ring.Reencrypt(ctx, c.caller, in.Name, in.HasName, e)
		if err != nil {
			return err
		}
		c.json(http.StatusOK, func(b []byte) []byte { return kmswire.AppendEDEK(b, &in.Name, &fresh) })
		return nil
	}
	return wrongOp
}

func reencryptBatch(ctx context.Context, c *call) error {
	body := c.used
	if err := c.reserve(ctx, batchMemory*int64(len(c.body))); err != nil {
		return err
	}
	in, err := kmswire.ReadBatch(c.body, c.Limits.MaxBatch)
	if err != nil {
		return err
	}
	recycle(c.body) // the EDEKs are copies
	c.body = nil
	c.free(body)
	for i := range in {
		if err := checkLength(in[i].Version, claviger.MaxVersionName); err != nil {
			return err
		}
		if err := c.checkMaterial(in[i].Material); err != nil {
			return err
		}
	}
	c.edeks = len(in)
	if err := c.admit(ctx, batches, batchWeight(in)); err != nil {
		return err
	}
	fresh, err := c.Ring.ReencryptBatch(ctx, c.caller, c.name, in)
	if err != nil {
		return err
	}
	w := kmswire.NewEDEKWriter(c.name)
	return c.sizedList(ctx, len(fresh), func(i int) int { return w.SizeReencrypted(&in[i], &fresh[i]) },
		func(b []byte, i int) []byte { return w.AppendReencrypted(b, &in[i], &fresh[i]) })
}
