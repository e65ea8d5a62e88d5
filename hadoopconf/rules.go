package hadoopconf

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// AuthorizationManager is the property with the class that decides the rights in a KMS. This server has the rules of
// Hadoop's own class, KMSACLs.
const (
	AuthorizationManager = "hadoop.kms.security.authorization.manager"
	hadoopsManager       = "org.apache.hadoop.crypto.key.kms.server.KMSACLs"
)

// foreignFiles has the files of a Ranger KMS, whose rules and keys are in other places.
var foreignFiles = []string{"dbks-site.xml", "ranger-kms-security.xml", "ranger-kms-audit.xml",
	"ranger-kms-policymgr-ssl.xml"}

// onlyTheseRules is a part of all errors of CheckRules.
const onlyTheseRules = "this server uses only the rules of %s, and no policy of a Ranger Admin: write rules there " +
	"that grant what the policies grant (claviger acl explain USER OPERATION KEY shows the effect), then "

// CheckRules returns an error if the folder is that of a KMS whose rules are not in kms-acls.xml. With the rules of
// kms-acls.xml a user could get a key that the other rules deny.
func (c *Conf) CheckRules() error {
	acls := filepath.Join(c.dir, "kms-acls.xml")
	if v, ok := c.Get(AuthorizationManager); ok && v != hadoopsManager {
		return &ValueError{Property: c.props[AuthorizationManager], Value: v,
			Want: fmt.Sprintf(onlyTheseRules+"remove this property", acls)}
	}
	for _, name := range foreignFiles {
		path := filepath.Join(c.dir, name)
		if _, err := os.Stat(path); err == nil {
			return fmt.Errorf("%s belongs to a Ranger KMS: "+onlyTheseRules+"move that file out of the folder; a "+
				"Ranger KMS can be the source of a migration (%s)", path, acls, SourceURI)
		}
	}
	return nil
}

// ruleFamilies has the prefixes of names that only kms-acls.xml may contain.
var ruleFamilies = []string{"hadoop.kms.acl.", "hadoop.kms.blacklist.", "keytrustee.kms.acl.", "key.acl.",
	"default.key.acl.", "whitelist.key.acl."}

// IsRule reports whether a property of that name belongs in kms-acls.xml.
func IsRule(name string) bool {
	return slices.ContainsFunc(ruleFamilies, func(f string) bool { return strings.HasPrefix(name, f) })
}

// MisplacedRules returns a warning for each rule that is in a file other than kms-acls.xml.
func (c *Conf) MisplacedRules() []string {
	var out []string
	for _, name := range c.Names() {
		if p := c.props[name]; IsRule(name) && p.File != "" {
			out = append(out, fmt.Sprintf("%s: property %s has no effect here: rules are read from %s only; "+
				"move it there", p.Where(), name, filepath.Join(c.dir, "kms-acls.xml")))
		}
	}
	return out
}
