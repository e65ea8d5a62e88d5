package pkcs11

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// isSoftHSM tells whether a module is SoftHSM 2, whose tokens are folders of files.
// It hides a token whose files it may not read behind an empty slot, and initialises
// the slot anew if it is told to: a second token of the same name.
func isSoftHSM(module string) bool { return strings.Contains(filepath.Base(module), "softhsm") }

// softHSMFault is an error of kind fs.ErrPermission that names the first file that
// SoftHSM needs and this process may not read; nil where it may read all, or where
// the module is another.
func softHSMFault(module string) error {
	if !isSoftHSM(module) {
		return nil
	}
	err := readableTokens()
	if !errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return fmt.Errorf("SoftHSM shows a token to those alone who may read its files: %w; run as the user who owns them, or give this one rights to them; make no new token", err)
}

// readableTokens opens what SoftHSM opens.
func readableTokens() error {
	conf, err := softHSMConf()
	if err != nil {
		return err
	}
	file, err := os.Open(conf)
	if err != nil {
		return err
	}
	defer file.Close()
	tokens := "/var/lib/softhsm/tokens/" // where the settings name none
	for in := bufio.NewScanner(file); in.Scan(); {
		if name, value, ok := strings.Cut(in.Text(), "="); ok && strings.TrimSpace(name) == "directories.tokendir" {
			tokens = strings.TrimSpace(value)
		}
	}
	return filepath.WalkDir(tokens, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return nil
		}
		f, err := os.Open(path) //nolint:gosec // whether it may be read is all that is asked; nothing is read
		if err != nil {
			return err
		}
		return f.Close()
	})
}

// softHSMConf is where SoftHSM looks for its settings.
func softHSMConf() (string, error) {
	if conf := os.Getenv("SOFTHSM2_CONF"); conf != "" {
		return conf, nil
	}
	if home, err := os.UserHomeDir(); err == nil {
		conf := filepath.Join(home, ".config/softhsm2/softhsm2.conf")
		if _, err := os.Stat(conf); err == nil || errors.Is(err, fs.ErrPermission) {
			return conf, err
		}
	}
	return "/etc/softhsm/softhsm2.conf", nil
}
