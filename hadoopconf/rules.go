package hadoopconf

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// AuthorizationManager names the class that a KMS asks for rights; Hadoop's own, of
// which this server has the rules, is KMSACLs.
const (
	AuthorizationManager = "hadoop.kms.security.authorization.manager"
	hadoopsManager       = "org.apache.hadoop.crypto.key.kms.server.KMSACLs"
)

// foreignFiles are those of a KMS whose rules and keys are elsewhere: of Ranger.
var foreignFiles = []string{"dbks-site.xml", "ranger-kms-security.xml", "ranger-kms-audit.xml",
	"ranger-kms-policymgr-ssl.xml"}

// onlyTheseRules is what all refusals of CheckRules end with.
const onlyTheseRules = "this server asks the rules of %s alone, and no policy of a Ranger Admin: write there what the policies grant" +
	" (claviger acl explain USER OPERATION KEY shows the effect), then "

// CheckRules refuses a folder that was made for a KMS with other rules than those
// of kms-acls.xml: served under these, a user could get what the others deny him.
func (c *Conf) CheckRules() error {
	acls := filepath.Join(c.dir, "kms-acls.xml")
	if v, ok := c.Get(AuthorizationManager); ok && v != hadoopsManager {
		return &ValueError{Property: c.props[AuthorizationManager], Value: v,
			Want: fmt.Sprintf(onlyTheseRules+"take this property out", acls)}
	}
	for _, name := range foreignFiles {
		path := filepath.Join(c.dir, name)
		if _, err := os.Stat(path); err == nil {
			return fmt.Errorf("%s belongs to a Ranger KMS: "+onlyTheseRules+"move that file out of the folder; a Ranger KMS can be the source of a migration (%s)", path, acls, SourceURI)
		}
	}
	return nil
}

// ruleFamilies are the beginnings of names that only kms-acls.xml may hold.
var ruleFamilies = []string{"hadoop.kms.acl.", "hadoop.kms.blacklist.", "keytrustee.kms.acl.", "key.acl.",
	"default.key.acl.", "whitelist.key.acl."}

// IsRule tells whether a property of that name is one of kms-acls.xml.
func IsRule(name string) bool {
	return slices.ContainsFunc(ruleFamilies, func(f string) bool { return strings.HasPrefix(name, f) })
}

// MisplacedRules says which rules stand in a file where nothing reads them.
func (c *Conf) MisplacedRules() []string {
	var out []string
	for _, name := range c.Names() {
		if p := c.props[name]; IsRule(name) && p.File != "" {
			out = append(out, fmt.Sprintf("%s: property %s has no effect here: rules are read from %s alone; move it there",
				p.Where(), name, filepath.Join(c.dir, "kms-acls.xml")))
		}
	}
	return out
}
