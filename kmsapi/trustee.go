package kmsapi

import (
	"context"
	"net/http"
	"time"

	"claviger/kmswire"
)

// This file has the operations of the Key Trustee KMS that Hadoop lacks: on
// soft-deleted keys, and the migration of a key. Their path and parameter are
// public. Their answers are not, so they are like Hadoop's answer to a deletion.

// wrongTrusteeOp is the answer to an unknown trusteeOp, in the form of wrongOp.
var wrongTrusteeOp = kmswire.Throw(kmswire.IllegalArgument, "IllegalArgumentException Wrong trusteeOp value, "+
	"it must be undelete, undeleteVersion, purge, purgeVersion or migrate")

func trusteeOp(ctx context.Context, c *call) error {
	op, ok := c.param("trusteeOp")
	if !ok {
		return kmswire.Throw(kmswire.IllegalArgument, "Parameter 'trusteeOp' cannot be null")
	}
	var version string
	if op == kmswire.OpUndeleteVersion || op == kmswire.OpPurgeVersion {
		if version, _ = c.param(kmswire.ParamVersion); version == "" {
			return kmswire.Throw(kmswire.IllegalArgument,
				"Parameter 'version' cannot be null: it is the full name of a version of the deleted key")
		}
	}
	all, given := c.param(kmswire.ParamAll)
	if given && (op != kmswire.OpPurge || all != "true") {
		return kmswire.Throw(kmswire.IllegalArgument,
			"IllegalArgumentException Parameter 'all' must be true, and goes with trusteeOp=purge alone")
	}
	var err error
	switch op {
	case kmswire.OpUndelete, kmswire.OpUndeleteVersion:
		err = c.Ring.Undelete(ctx, c.caller, c.name, version)
	case kmswire.OpPurge, kmswire.OpPurgeVersion:
		c.opName = "purge_key"
		if given {
			err = c.Ring.PurgeAll(ctx, c.caller, c.name)
		} else {
			err = c.Ring.Purge(ctx, c.caller, c.name, version)
		}
	case kmswire.OpMigrate:
		return migrateKey(ctx, c)
	default:
		return wrongTrusteeOp
	}
	if err != nil {
		return err
	}
	c.answer(http.StatusOK, "text/plain;charset=utf-8", nil)
	return nil
}

// migrateKey is our own operation. A client may repeat it after any error.
func migrateKey(ctx context.Context, c *call) error {
	c.opName = "migrate_key"
	versions, err := c.Ring.Migrate(ctx, c.caller, c.name)
	if err != nil {
		return err
	}
	c.json(http.StatusOK, func(b []byte) []byte {
		return kmswire.AppendJSON(b, kmswire.MigratedKey{Name: c.name, Versions: versions})
	})
	return nil
}

// describe is our own operation: one answer that describes a key, and the deleted
// keys of its name, for an operator. It holds no material.
func describe(ctx context.Context, c *call) error {
	if err := c.reserveEstimate(ctx, c.lists.described, 1); err != nil {
		return err
	}
	list, err := c.Ring.Describe(ctx, c.caller, c.name)
	if err != nil {
		return err
	}
	keys := make([]kmswire.KeyDescription, len(list))
	for i, d := range list {
		keys[i] = kmswire.KeyDescription{
			Name: d.Name, Provider: c.Ring.PrimaryURI(), Cipher: d.Cipher, Length: d.BitLength,
			Description: d.Description, Attributes: d.Attributes, Created: millis(d.Created),
			Deleted: millis(d.Deleted), Versions: make([]kmswire.VersionDescription, len(d.List)),
			UsesSince: millis(d.UsesSince),
		}
		for j, v := range d.List {
			keys[i].Versions[j] = kmswire.VersionDescription{
				Name: v.Name, Created: millis(v.Created), LastUse: millis(v.LastUse), Label: v.Label, ID: v.ID,
			}
		}
	}
	if err := c.reserveActual(ctx, c.lists.described, 1, describedMemory(keys)); err != nil {
		return err
	}
	return c.list(ctx, len(keys), func(b []byte, i int) []byte { return kmswire.AppendJSON(b, keys[i]) })
}

// millis returns t in milliseconds since 1970; 0 if t is zero.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// deletedKeys is our own operation: no public interface of the Key Trustee KMS lists
// the deleted keys.
func deletedKeys(ctx context.Context, c *call) error {
	if err := c.reserveEstimate(ctx, c.lists.deleted, 1); err != nil {
		return err
	}
	list, err := c.Ring.Deleted(ctx, c.caller)
	if err != nil {
		return err
	}
	if err := c.reserveActual(ctx, c.lists.deleted, 1, deletedMemory(list)); err != nil {
		return err
	}
	return c.list(ctx, len(list), func(b []byte, i int) []byte {
		k := &list[i]
		out := kmswire.DeletedKey{
			Name: k.Name, Cipher: k.Cipher, Length: k.BitLength, Description: k.Description,
			Attributes: k.Attributes, Created: k.Created.UnixMilli(), Versions: k.List, Deleted: k.Since.UnixMilli(),
		}
		if !k.LastUse.IsZero() {
			out.LastUse = k.LastUse.UnixMilli()
		}
		return kmswire.AppendJSON(b, out)
	})
}
