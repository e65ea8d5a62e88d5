package keystore

import (
	"bytes"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
)

// Format is a form of keystore file, with the names of Hadoop's ssl.server.keystore.type.
type Format string

// The formats that Sniff recognises.
const (
	JKSFormat    Format = "jks"
	JCEKSFormat  Format = "jceks"
	PKCS12Format Format = "pkcs12"
	PEMFormat    Format = "pem"
)

const jksMagic = 0xfeedfeed

// Sniff recognises a keystore's format by its content. It returns "" for an unknown format.
func Sniff(data []byte) Format {
	if len(data) >= 4 {
		switch binary.BigEndian.Uint32(data) {
		case jceksMagic:
			return JCEKSFormat
		case jksMagic:
			return JKSFormat
		}
	}
	if bytes.Contains(data, []byte("-----BEGIN ")) {
		return PEMFormat
	}
	// A PFX (RFC 7292) is a SEQUENCE that begins with the INTEGER 3.
	var pfx asn1.RawValue
	if _, err := asn1.Unmarshal(data, &pfx); err == nil && pfx.Tag == asn1.TagSequence {
		var version int
		if _, err := asn1.Unmarshal(pfx.Bytes, &version); err == nil && version == 3 {
			return PKCS12Format
		}
	}
	return ""
}

// notJCEKS returns the error for a file that is neither a JCEKS nor a JKS keystore. The error names the real format.
func notJCEKS(data []byte) error {
	e := &FormatError{Format: "JCEKS"}
	switch e.Is = Sniff(data); {
	case e.Is == PKCS12Format:
		e.What = "this is a PKCS#12 file, which keytool makes unless -storetype says otherwise; Java's jceks " +
			"keystores are only JCEKS and JKS files"
	case e.Is != "":
		e.What = fmt.Sprintf("this is a %s file, not a JCEKS keystore", e.Is)
	case len(data) == 0:
		e.What = "the file is empty, so it is not a keystore"
	default:
		e.What = fmt.Sprintf("the file begins with % x, not with ce ce ce ce, so it is not a JCEKS keystore",
			data[:min(4, len(data))])
	}
	return e
}
