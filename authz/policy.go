package authz

import "claviger"

// Policy is a parsed kms-acls.xml. It is immutable.
type Policy struct{}

// May reports whether the operation-level rules admit who, blacklists included.
func (p *Policy) May(op Op, who claviger.Principal, groups func(user string) []string) bool {
	panic("not built")
}

// KeyRulePresent is Hadoop's isACLPresent: whether any rule could admit anybody.
func (p *Policy) KeyRulePresent(aclName string, op KeyOp) bool { panic("not built") }

// MayKey is Hadoop's hasAccessToKey for exactly this op (the caller asks again
// with KeyAll, as Hadoop does).
func (p *Policy) MayKey(aclName string, op KeyOp, who claviger.Principal, groups func(user string) []string) bool {
	panic("not built")
}
