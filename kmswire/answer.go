package kmswire

import (
	"maps"
	"slices"
	"strconv"
	"unicode/utf8"

	"claviger"
	"claviger/secret"
)

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string. Bytes that are not UTF-8 become
// U+FFFD.
func appendString[T string | []byte](b []byte, s T) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' {
				i++
				continue
			}
			b = append(b, s[start:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\n':
				b = append(b, '\\', 'n')
			case '\r':
				b = append(b, '\\', 'r')
			case '\t':
				b = append(b, '\\', 't')
			default:
				b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRuneInString(string(s[i:min(i+utf8.UTFMax, len(s))]))
		if r == utf8.RuneError && size == 1 {
			b = append(b, s[start:i]...)
			b = append(b, "\ufffd"...)
			i++
			start = i
			continue
		}
		i += size
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}

func appendBytes(b, data []byte) []byte {
	b = append(b, '"')
	b = urlSafe.AppendEncode(b, data)
	return append(b, '"')
}

func appendNullable(b []byte, s *string) []byte {
	if s == nil {
		return append(b, "null"...)
	}
	return appendString(b, *s)
}

// AppendKeyVersion appends a key version; nil is one that does not exist. Nil material
// is written as null: the caller may not see it.
func AppendKeyVersion(b []byte, v *claviger.KeyVersion) []byte {
	if v == nil {
		return append(b, "{}"...)
	}
	return appendVersion(b, v.Key, v.Name, v.Material)
}

func appendVersion(b []byte, key, version string, material secret.Bytes) []byte {
	b = append(b, `{"material":`...)
	if material == nil {
		b = append(b, "null"...)
	} else {
		b = appendBytes(b, material)
	}
	b = append(b, `,"name":`...)
	b = appendString(b, key)
	b = append(b, `,"versionName":`...)
	b = appendString(b, version)
	return append(b, '}')
}

// AppendList appends a list of n items. item appends the i-th.
func AppendList(b []byte, n int, item func([]byte, int) []byte) []byte {
	b = append(b, '[')
	for i := range n {
		if i > 0 {
			b = append(b, ',')
		}
		b = item(b, i)
	}
	return append(b, ']')
}

// AppendDEK appends a decrypted DEK of a key.
func AppendDEK(b []byte, key string, dek secret.Bytes) []byte {
	if dek == nil {
		dek = secret.Bytes{}
	}
	return appendVersion(b, key, EK, dek)
}

// AppendMetadata appends a key's metadata; nil is a key that does not exist.
func AppendMetadata(b []byte, m *claviger.Metadata) []byte {
	if m == nil {
		return append(b, "{}"...)
	}
	b = append(b, `{"name":`...)
	b = appendString(b, m.Name)
	b = append(b, `,"cipher":`...)
	b = appendString(b, m.Cipher)
	b = append(b, `,"length":`...)
	b = strconv.AppendInt(b, int64(m.BitLength), 10)
	b = append(b, `,"description":`...)
	b = appendNullable(b, m.Description)
	b = append(b, `,"attributes":{`...)
	for i, k := range slices.Sorted(maps.Keys(m.Attributes)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, k)
		b = append(b, ':')
		b = appendString(b, m.Attributes[k])
	}
	b = append(b, `},"created":`...)
	b = strconv.AppendInt(b, m.Created.UnixMilli(), 10)
	b = append(b, `,"versions":`...)
	b = strconv.AppendInt(b, int64(m.Versions), 10)
	return append(b, '}')
}

// AppendName appends the name of a key, as in a list of names.
func AppendName(b []byte, name string) []byte { return appendString(b, name) }

// AppendDelegationToken appends the answer to a request for a delegation token.
func AppendDelegationToken(b []byte, text string) []byte {
	b = append(b, `{"Token":{"urlString":`...)
	b = appendString(b, text)
	return append(b, "}}"...)
}

// AppendLong appends the answer to a renewal: when the token expires, in milliseconds
// since 1970.
func AppendLong(b []byte, millis int64) []byte {
	b = append(b, `{"long":`...)
	b = strconv.AppendInt(b, millis, 10)
	return append(b, '}')
}

// AppendException appends a RemoteException answer. As in Hadoop, it has only the
// first line of the message.
func AppendException(b []byte, e *Exception) []byte {
	b = append(b, `{"RemoteException":{"message":`...)
	if e.NoMessage {
		b = append(b, "null"...)
	} else {
		b = appendString(b, firstLine(e.Message))
	}
	b = append(b, `,"exception":`...)
	b = appendString(b, e.Simple())
	b = append(b, `,"javaClassName":`...)
	b = appendString(b, e.Class)
	return append(b, "}}"...)
}

func firstLine(s string) string {
	for i := range len(s) {
		if s[i] == '\n' {
			return s[:i]
		}
	}
	return s
}
