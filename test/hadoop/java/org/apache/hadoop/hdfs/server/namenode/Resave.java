package org.apache.hadoop.hdfs.server.namenode;

import java.io.File;
import java.nio.file.Files;
import java.nio.file.StandardCopyOption;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.hdfs.server.common.HdfsServerConstants;

/** Loads a folder of a NameNode as the NameNode does, and saves the namespace with each compression. */
public class Resave {
  private static final String CODECS = "org.apache.hadoop.io.compress.";

  /** Writes an image into the folder to for each codec; "none" is none, and "parallel" is none with sub-sections. */
  public static void run(Configuration conf, String name, String to, String[] codecs) throws Exception {
    conf.set("dfs.namenode.name.dir", "file://" + name);
    conf.set("dfs.namenode.edits.dir", "file://" + name);
    NameNode.initMetrics(conf, HdfsServerConstants.NamenodeRole.NAMENODE);
    FSNamesystem namesystem = FSNamesystem.loadFromDisk(conf);
    try {
      for (String codec : codecs) {
        boolean parallel = codec.equals("parallel");
        boolean compress = !parallel && !codec.equals("none");
        conf.setBoolean("dfs.image.compress", compress);
        conf.set("dfs.image.compression.codec", CODECS + (compress ? codec : "DefaultCodec"));
        conf.setBoolean("dfs.image.parallel.load", parallel);
        conf.setInt("dfs.image.parallel.inode.threshold", 10);
        conf.setInt("dfs.image.parallel.target.sections", 4);
        FSImageFormatProtobuf.initParallelLoad(conf);
        namesystem.getFSImage().saveNamespace(namesystem);
        File image = namesystem.getFSImage().getStorage().getHighestFsImageName();
        Files.copy(image.toPath(), new File(to, "image-" + codec).toPath(), StandardCopyOption.REPLACE_EXISTING);
      }
    } finally {
      namesystem.shutdown();
      namesystem.getFSImage().close();
    }
  }
}
