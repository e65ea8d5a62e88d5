package diagnosis

import (
	"context"
	"fmt"
	"time"

	"claviger"
	"claviger/doctor"
)

// zookeeperLimit bounds the reading of ZooKeeper's nodes. Tests change it.
var zookeeperLimit = 20 * time.Second

// zookeeper returns the checks of what nodes share in ZooKeeper.
func (s *site) zookeeper() doctor.Group {
	return doctor.Group{Title: "ZooKeeper", Checks: []doctor.Check{
		{ID: "D-zk-nodes", Title: "nodes in ZooKeeper", Needs: []string{"D-conf-read"},
			Measures: "the nodes of signer secrets and delegation tokens are read as a server does, with its login; " +
				"with SASL, their ACLs must not admit everybody",
			Why: "without these nodes the servers do not accept each other's cookies and tokens, and a user who may " +
				"read them can act as any user",
			Cure: "check that ZooKeeper runs and that this host reaches it (docs/nodes.md)",
			Run:  s.zkNodes},
		{ID: "D-zk-login", Title: "login to ZooKeeper", Needs: []string{"D-zk-nodes"},
			Measures: "whether the connection uses SASL",
			Why: "without SASL the nodes of this server admit everybody who reaches ZooKeeper, and a user who reads " +
				"them can act as any user",
			Cure: "set it to sasl on every node, with a keytab (docs/nodes.md)",
			Run:  s.zkLogin},
	}}
}

func (s *site) zkNodes(ctx context.Context) (list []doctor.Finding) {
	ctx, cancel := context.WithTimeout(ctx, zookeeperLimit)
	defer cancel()
	uses, err := s.service.ZooKeeper(ctx)
	if err != nil {
		return doctor.Error(err, "")
	}
	for _, u := range uses {
		f := doctor.Finding{Status: doctor.OK, Measured: fmt.Sprintf("%s are in %s", u.What, u.Ensemble)}
		switch {
		case u.Err != nil:
			f.Status, f.Measured = doctor.Failure, u.What+": "+claviger.Reason(u.Err)
		case !u.Exists:
			f.Measured += ", where nothing is yet; the first start makes it"
		}
		list = append(list, f)
	}
	if s.zk = uses; len(uses) == 0 {
		return doctor.Skip("nothing is shared in ZooKeeper")
	}
	return list
}

func (s *site) zkLogin(context.Context) (list []doctor.Finding) {
	for _, u := range s.zk {
		f := doctor.Finding{Status: doctor.OK, Measured: fmt.Sprintf("%s: SASL (%s)", u.What, u.Property)}
		if !u.Login {
			f.Status, f.Measured = doctor.Warning, fmt.Sprintf("%s: no login (%s is none)", u.What, u.Property)
		}
		list = append(list, f)
	}
	return list
}
