package hsm

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"claviger"
	"claviger/pkcs11"
)

// namedAtMost is how many objects a message names; the others it counts.
const namedAtMost = 10

// ours tells whether a key on a token is named as we name ours, and of which key of
// which store it is no matter: NAME@N, or NAME@ID of older versions, where ID is
// CKA_ID in hex.
func ours(k pkcs11.KeyInfo) (key, id string, ok bool) {
	key, ok = claviger.KeyOfVersion(k.Label)
	if !ok || len(k.ID) != idSize {
		return "", "", false
	}
	id = k.Label[len(key)+1:]
	if n, err := strconv.ParseUint(id, 10, 31); err == nil && strconv.FormatUint(n, 10) == id {
		return key, id, true
	}
	return key, id, id == fmt.Sprintf("%x", k.ID)
}

// some names a few of the labels, and counts the others.
func some(labels []string) string {
	labels = slices.Sorted(slices.Values(labels))
	more := ""
	if n := len(labels) - namedAtMost; n > 0 {
		labels, more = labels[:namedAtMost], fmt.Sprintf(" and %d more", n)
	}
	return strings.Join(labels, ", ") + more
}

// mayBeMade refuses to have a new store made beside a token that holds keys of ours:
// the store that knows them is elsewhere.
func mayBeMade(ctx context.Context, tok token, uri string) error {
	keys, err := tok.List(ctx)
	if err != nil {
		return err
	}
	var labels []string
	for _, k := range keys {
		if _, _, ok := ours(k); ok {
			labels = append(labels, k.Label)
		}
	}
	if len(labels) == 0 {
		return nil
	}
	return emptyStore(uri, tok.Info(), labels)
}

// emptyStore is the refusal to serve a token's keys without their records.
func emptyStore(uri string, info pkcs11.TokenInfo, labels []string) error {
	return claviger.Errorf("hsm.Open", claviger.Invalid, "",
		"the metastore %s knows no key, but token %s holds %d keys of claviger: %s; name the metastore that knows them by claviger.metastore.uri, or restore it from a backup; if it is lost, claviger hsm adopt makes new records of these keys",
		uri, tokenName(info), len(labels), some(labels))
}
