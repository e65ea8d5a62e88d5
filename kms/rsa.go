package kms

import (
	"crypto"
	"crypto/rsa"
	"log/slog"
	"sync"

	"claviger/hadoopconf"
	"claviger/libcrypto"
)

// rsaProperty decides what makes the RSA signatures of TLS handshakes.
const rsaProperty = "claviger.ssl.rsa"

// rsaSigners returns a function that gives each RSA key of the server a faster signer. Keys of other kinds, and all
// keys where the library cannot be used, stay as they are.
func rsaSigners(conf *hadoopconf.Conf, log *slog.Logger) (func(crypto.PrivateKey) crypto.PrivateKey, error) {
	switch conf.String(rsaProperty) {
	case "libcrypto":
	case "go":
		return func(key crypto.PrivateKey) crypto.PrivateKey { return key }, nil
	default:
		return nil, conf.Refuse(rsaProperty, "it must be libcrypto or go")
	}
	var failedOnce, unavailableOnce sync.Once
	failed := func(err error) {
		failedOnce.Do(func() {
			log.Warn(libcrypto.Name+" failed at a signature, and Go's own code made it; further failures are not "+
				"logged", "property", rsaProperty, "err", err)
		})
	}
	return func(key crypto.PrivateKey) crypto.PrivateKey {
		own, ok := key.(*rsa.PrivateKey)
		if !ok {
			return key
		}
		signer, err := libcrypto.NewSigner(own, failed)
		if err != nil {
			unavailableOnce.Do(func() {
				log.Info("RSA signatures of TLS are made by Go's own code, which takes about three times as long as "+
					libcrypto.Name, "property", rsaProperty, "reason", err)
			})
			return key
		}
		return signer
	}, nil
}
