package keystore

import (
	"errors"
	"unicode/utf16"
	"unicode/utf8"
)

// maxMUTF8 is the longest text in Java's "modified UTF-8" (java.io.DataInput), because a length of two bytes comes
// before it. The text consists of UTF-16 code units, each in one to three bytes. NUL is C0 80. A character beyond the
// BMP is two units of three bytes.
const maxMUTF8 = 0xffff

var errMUTF8 = errors.New("malformed modified UTF-8")

// appendMUTF8 appends s in modified UTF-8, with its length in front.
func appendMUTF8(dst []byte, s string) ([]byte, error) {
	if !utf8.ValidString(s) {
		return nil, errors.New("text is not UTF-8")
	}
	start := len(dst)
	dst = append(dst, 0, 0)
	for _, u := range utf16.Encode([]rune(s)) {
		switch {
		case u != 0 && u < 0x80:
			dst = append(dst, byte(u))
		case u < 0x800:
			dst = append(dst, 0xc0|byte(u>>6), 0x80|byte(u&0x3f))
		default:
			dst = append(dst, 0xe0|byte(u>>12), 0x80|byte(u>>6&0x3f), 0x80|byte(u&0x3f))
		}
	}
	n := len(dst) - start - 2
	if n > maxMUTF8 {
		return nil, errors.New("text is longer than 65535 bytes")
	}
	dst[start], dst[start+1] = byte(n>>8), byte(n)
	return dst, nil
}

// decodeMUTF8 reads the result of appendMUTF8, without the length. It refuses half a surrogate pair, which Java
// accepts, because no valid Go string can contain it.
func decodeMUTF8(b []byte) (string, error) {
	units := make([]uint16, 0, len(b))
	for i := 0; i < len(b); {
		c := b[i]
		cont := func(k int) (uint16, bool) {
			if i+k >= len(b) || b[i+k]&0xc0 != 0x80 {
				return 0, false
			}
			return uint16(b[i+k] & 0x3f), true
		}
		switch {
		case c < 0x80:
			units = append(units, uint16(c))
			i++
		case c&0xe0 == 0xc0:
			d, ok := cont(1)
			if !ok {
				return "", errMUTF8
			}
			units = append(units, uint16(c&0x1f)<<6|d)
			i += 2
		case c&0xf0 == 0xe0:
			d, ok1 := cont(1)
			e, ok2 := cont(2)
			if !ok1 || !ok2 {
				return "", errMUTF8
			}
			units = append(units, uint16(c&0x0f)<<12|d<<6|e)
			i += 3
		default:
			return "", errMUTF8
		}
	}
	for i := 0; i < len(units); i++ {
		if !utf16.IsSurrogate(rune(units[i])) {
			continue
		}
		if i+1 == len(units) || utf16.DecodeRune(rune(units[i]), rune(units[i+1])) == utf8.RuneError {
			return "", errMUTF8
		}
		i++
	}
	return string(utf16.Decode(units)), nil
}

// CheckAlias returns an error if no entry can have this alias.
func CheckAlias(alias string) error {
	_, err := appendMUTF8(nil, alias)
	return err
}
