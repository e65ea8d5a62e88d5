package diagnosis

import (
	"fmt"
	"os"

	"claviger/doctor"
	"claviger/hadoopconf"
)

// hdfsConf returns the configuration of --hdfs-conf. If it is nil, the findings say why.
func (s *site) hdfsConf() (*hadoopconf.Conf, []doctor.Finding) {
	if s.options.HDFS == "" {
		return nil, doctor.Skip("--hdfs-conf names no folder with HDFS' configuration")
	}
	conf, err := hadoopconf.LoadHDFS(s.options.HDFS, os.LookupEnv)
	if err != nil {
		return nil, doctor.Error(fmt.Errorf("--hdfs-conf: %w", err), "name the folder of HDFS' configuration")
	}
	return conf, nil
}
